// Where datasets, base models and artifacts lie: blobs named by their content, and manifests that give them paths.
// An artifact exists once its manifest does; the manifest is written last, so a half-published artifact is never seen.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "nlohmann/json.hpp"

namespace luthier {

// One file of an artifact.
struct ManifestFile {
  std::string path;    // relative, `/` between names
  std::string sha256;  // lower-case hexadecimal
  int64_t bytes = 0;
  friend bool operator==(const ManifestFile&, const ManifestFile&) = default;
};

// The files of an artifact, each path once.
struct Manifest {
  std::vector<ManifestFile> files;
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

nlohmann::json ToJson(const Manifest& manifest);

// Errors: INVALID_ARGUMENT for a bad path, hash or size, or a path given twice.
absl::StatusOr<Manifest> ParseManifest(const nlohmann::json& json);

// Paths that come from others: relative, of at most 1,024 bytes, names of 1 to 255 bytes that are neither `.` nor `..`
// and hold no NUL, backslash or control character. Errors: INVALID_ARGUMENT naming the path's fault.
absl::Status CheckRelativePath(absl::string_view path);

// Identifies the artifact of an attempt: `jobs/<job>/attempt-<N>/<name>`.
struct ArtifactKey {
  std::string job;   // id without `jobs/`
  int attempt = 1;   // from 1
  std::string name;  // "adapter", "model", "report", …
};

// A blob being written. Without Commit() nothing of it stays. One thread.
class BlobWriter {
 public:
  virtual ~BlobWriter() = default;
  // Errors: RESOURCE_EXHAUSTED if the disk is full; DATA_LOSS.
  virtual absl::Status Append(absl::string_view bytes) = 0;
  // Stores the blob and returns its SHA-256. Errors: DATA_LOSS if `expected_sha256` is given and differs; as Append.
  virtual absl::StatusOr<std::string> Commit(absl::string_view expected_sha256) = 0;
  virtual int64_t bytes() const = 0;
};

// A blob being read. One thread.
class BlobReader {
 public:
  virtual ~BlobReader() = default;
  // Reads up to `buffer.size()` bytes from the current place; 0 at the end. The read that reaches the end checks the
  // hash, so damaged bytes never look complete. Errors: DATA_LOSS.
  virtual absl::StatusOr<size_t> Read(std::span<char> buffer) = 0;
  virtual int64_t size() const = 0;
};

class ArtifactStore;

// Keeps blobs that nothing refers to yet from CollectGarbage(): an upload holds one until what it uploads is on record.
class BlobPins {
 public:
  explicit BlobPins(ArtifactStore& store) : store_(store) {}
  BlobPins(const BlobPins&) = delete;
  ~BlobPins();
  void Add(absl::string_view sha256);

 private:
  ArtifactStore& store_;
  std::vector<std::string> blobs_;
};

// Immutable storage. Implementations may be called from several threads; writers and readers belong to one each.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // `pins`, which must outlive the writer, holds the blob from its commit on; none where nobody collects garbage.
  // Errors: RESOURCE_EXHAUSTED if fewer than `expected_bytes` (0: unknown) and a reserve are free.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> PutBlob(int64_t expected_bytes, BlobPins* pins = nullptr) = 0;
  // Errors: INVALID_ARGUMENT for a name that is no SHA-256, OUT_OF_RANGE for an offset beyond the end; NOT_FOUND;
  // DATA_LOSS. Reading starts at byte `offset` (the hash still covers the bytes before).
  virtual absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(absl::string_view sha256, int64_t offset) = 0;
  virtual absl::StatusOr<int64_t> BlobSize(absl::string_view sha256) = 0;
  bool HasBlob(absl::string_view sha256) { return BlobSize(sha256).ok(); }
  // Publishes an artifact. Publishing the same again succeeds. Errors: FAILED_PRECONDITION if a blob is not stored or
  // has another size; ALREADY_EXISTS if the key has another manifest.
  virtual absl::Status PutManifest(const ArtifactKey& key, const Manifest& manifest) = 0;
  // Errors: NOT_FOUND; DATA_LOSS if the manifest is damaged.
  virtual absl::StatusOr<Manifest> GetManifest(const ArtifactKey& key) = 0;
  // Removes a blob that nothing refers to any more; succeeds if there is none.
  virtual absl::Status DeleteBlob(absl::string_view sha256) = 0;

 protected:
  friend class BlobPins;
  virtual void Pin(const std::string& sha256) = 0;
  virtual void Unpin(const std::string& sha256) = 0;
};

// What CollectGarbage() removed.
struct Garbage {
  int64_t blobs = 0;
  int64_t bytes = 0;
  int64_t manifests = 0;
};

// Artifacts in a folder: `blobs/sha256/ab/<hex>` and `jobs/<job>/attempt-<N>/<name>/manifest.json`.
class FileArtifactStore : public ArtifactStore {
 public:
  // Creates the folder if needed and removes unfinished files of a process that died. One process owns a folder.
  static absl::StatusOr<std::unique_ptr<FileArtifactStore>> Open(const std::string& root);

  // The folder of another process that this one may also write blobs into; creates and removes nothing. What is
  // unfinished when the owner starts anew is lost, and its Commit() fails. Errors: NOT_FOUND if no store is there.
  static absl::StatusOr<std::unique_ptr<FileArtifactStore>> OpenShared(const std::string& root);

  absl::StatusOr<std::unique_ptr<BlobWriter>> PutBlob(int64_t expected_bytes, BlobPins* pins = nullptr) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(absl::string_view sha256, int64_t offset) override;
  absl::StatusOr<int64_t> BlobSize(absl::string_view sha256) override;
  absl::Status PutManifest(const ArtifactKey& key, const Manifest& manifest) override;
  absl::StatusOr<Manifest> GetManifest(const ArtifactKey& key) override;
  absl::Status DeleteBlob(absl::string_view sha256) override;

  // Makes a blob of another store this one's too: a link where both are on one disk, else a copy. Every byte is read
  // and checked, and a damaged blob of this store is replaced. Errors: NOT_FOUND; DATA_LOSS if it is damaged there;
  // RESOURCE_EXHAUSTED.
  absl::Status AddFrom(FileArtifactStore& other, const std::string& sha256);

  // What is referred to from outside; asked after the blobs were listed, so that it may only grow in between by what is
  // pinned.
  struct References {
    std::set<std::string> blobs;
    std::set<std::pair<std::string, int>> attempts;  // job, number: their manifests count too
  };
  // Removes every blob and manifest that nothing refers to and that is older than `keep` (another process may have
  // written a blob that it is about to refer to). Uploads may go on meanwhile. One call at a time.
  absl::StatusOr<Garbage> CollectGarbage(const std::function<absl::StatusOr<References>()>& references,
                                         absl::Duration keep);

  // Where a blob lies, for programs on the same machine that only read it.
  absl::StatusOr<std::string> BlobPath(absl::string_view sha256) const;

  // The same for a process that shares the folder `root` with its owner. `sha256` must be one.
  static std::string BlobPathIn(const std::string& root, absl::string_view sha256);

 private:
  explicit FileArtifactStore(std::string root) : root_(std::move(root)) {}
  void Pin(const std::string& sha256) override;
  void Unpin(const std::string& sha256) override;
  absl::Status DeleteIfUntouched(const std::string& sha256, absl::Time before, Garbage& garbage);

  std::string root_;
  std::mutex mutex_;  // of what follows
  std::map<std::string, int> pins_;
  std::optional<std::set<std::string>> touched_;  // pinned at any time since a collection began; none: no collection
};

// Opens `path` beneath the folder `root` for reading without following a symbolic link on the way, and returns the file
// descriptor, which the caller closes. Errors: INVALID_ARGUMENT for a bad path or a link; NOT_FOUND.
absl::StatusOr<int> OpenBeneath(const std::string& root, absl::string_view path);

// Hashes every regular file beneath `folder` into a manifest, paths sorted. Errors: INVALID_ARGUMENT for links and odd
// files.
absl::StatusOr<Manifest> ManifestOfFolder(const std::string& folder);

// Bytes that an unprivileged process may still write to the disk of `folder`.
absl::StatusOr<int64_t> FreeBytes(const std::string& folder);

}  // namespace luthier
