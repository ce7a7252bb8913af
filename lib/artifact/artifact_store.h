// Where datasets, base models and artifacts lie: blobs named by their content, and manifests that give them paths.
// An artifact exists once its manifest does; the manifest is written last, so a half-published artifact is never seen.
//
// file_artifact_store.h keeps them in a folder, bucket_artifact_store.h in a bucket, under the same names: blobs as
// `blobs/sha256/ab/<hex>`, manifests as `jobs/<job>/attempt-<N>/<name>/manifest.json`.
#pragma once

#include <condition_variable>
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
#include "lib/artifact/hash.h"
#include "lib/artifact/manifest.h"

namespace luthier {

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
  // Errors: RESOURCE_EXHAUSTED if the disk is full; UNAVAILABLE; DATA_LOSS if the disk fails.
  virtual absl::Status Append(absl::string_view bytes) = 0;
  // Stores the blob. Errors: INVALID_ARGUMENT if its content has another hash than its name says; as Append.
  virtual absl::Status Commit() = 0;
  virtual int64_t bytes() const = 0;
};

// A blob being read. One thread.
class BlobReader {
 public:
  virtual ~BlobReader() = default;
  // Reads up to `buffer.size()` bytes from the current place; 0 at the end. The read that reaches the end checks the
  // hash, so damaged bytes never look complete. Errors: DATA_LOSS; UNAVAILABLE.
  virtual absl::StatusOr<size_t> Read(std::span<char> buffer) = 0;
  virtual int64_t size() const = 0;
};

// A file of this machine with the content of a blob, for who needs a path. Read only; it stays while this lives.
struct LocalBlob {
  std::string path;
  std::shared_ptr<const void> lease;
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

// What CollectGarbage() removed.
struct Garbage {
  int64_t blobs = 0;
  int64_t bytes = 0;
  int64_t manifests = 0;
};

// Immutable storage. May be called from several threads; writers and readers belong to one each. Calls wait for a disk
// or a network, so none belongs on the state loop or in a reaction of gRPC.
//
// Errors of all of them: UNAVAILABLE if the place cannot be reached; those of disks.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // Where the files lie if not on this machine: `s3://…`, `az://…`, `gs://…`. They are in no backup then.
  virtual std::string Address() const = 0;

  // `sha256` is what the content must have. `pins`, which must outlive the writer, holds the blob from its commit on;
  // none where nobody collects garbage. Errors: INVALID_ARGUMENT for a name that is no SHA-256; RESOURCE_EXHAUSTED if
  // fewer than `expected_bytes` (0: unknown) and a reserve are free, which are not kept for it.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> PutBlob(const std::string& sha256, int64_t expected_bytes,
                                                              BlobPins* pins = nullptr) = 0;
  // Errors: INVALID_ARGUMENT for a name that is no SHA-256, OUT_OF_RANGE for an offset beyond the end; NOT_FOUND;
  // DATA_LOSS. Reading starts at byte `offset` (the hash still covers the bytes before).
  virtual absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(absl::string_view sha256, int64_t offset) = 0;
  // Errors: as OpenBlob; RESOURCE_EXHAUSTED if there is no room for it here.
  virtual absl::StatusOr<LocalBlob> MakeLocal(const std::string& sha256) = 0;
  // A URL with which whoever has it may get the blob until `lifetime` is over; whether there is such a blob is not
  // looked at. Errors: INVALID_ARGUMENT; FAILED_PRECONDITION if the place has no such URLs.
  virtual absl::StatusOr<std::string> SignBlob(absl::string_view sha256, absl::Duration lifetime) = 0;
  absl::StatusOr<int64_t> BlobSize(absl::string_view sha256);
  bool HasBlob(absl::string_view sha256) { return BlobSize(sha256).ok(); }
  // Removes a blob that nothing refers to any more; succeeds if there is none.
  absl::Status DeleteBlob(absl::string_view sha256);

  // Publishes an artifact. Publishing the same again succeeds. Errors: FAILED_PRECONDITION if a blob is not stored or
  // has another size; ALREADY_EXISTS if the key has another manifest.
  absl::Status PutManifest(const ArtifactKey& key, const Manifest& manifest);
  // Errors: NOT_FOUND; DATA_LOSS if the manifest is damaged.
  absl::StatusOr<Manifest> GetManifest(const ArtifactKey& key);

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

 protected:
  // A stored file: a blob or a manifest. `path` is relative to the store.
  struct File {
    std::string path;
    int64_t bytes = 0;
    absl::Time time;  // of its last change
  };
  // The path of a blob. Errors: INVALID_ARGUMENT.
  static absl::StatusOr<std::string> PathOfBlob(absl::string_view sha256);

 private:
  friend class BlobPins;

  // Errors: NOT_FOUND.
  virtual absl::StatusOr<File> Stat(const std::string& path) = 0;
  virtual absl::StatusOr<std::string> ReadText(const std::string& path) = 0;
  // Whole and durable, or not at all. Errors: ALREADY_EXISTS; what is there is not replaced.
  virtual absl::Status WriteNew(const std::string& path, const std::string& text) = 0;
  // Succeeds if there is none.
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::StatusOr<std::vector<File>> List(const std::string& folder) = 0;

  absl::Status RemoveManifests(const std::vector<File>& manifests, References& used, Garbage& garbage);
  absl::Status RemoveBlob(const std::string& sha256, absl::Time before, Garbage& garbage);
  void Pin(const std::string& sha256);
  void Unpin(const std::string& sha256);

  std::mutex mutex_;  // of what follows
  std::condition_variable removed_;
  std::map<std::string, int> pins_;
  std::optional<std::set<std::string>> touched_;  // pinned at any time since a collection began; none: no collection
  std::optional<std::string> removing_;           // the blob that a collection is just removing
};

// Makes a blob of one store another's too, checking every byte. Errors: of both.
absl::Status CopyBlob(ArtifactStore& from, ArtifactStore& to, const std::string& sha256);

}  // namespace luthier
