// Artifacts in a folder.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/artifact/artifact_store.h"

namespace luthier {

class FileArtifactStore : public ArtifactStore {
 public:
  // Creates the folder if needed and removes unfinished files of a process that died. One process owns a folder.
  static absl::StatusOr<std::unique_ptr<FileArtifactStore>> Open(const std::string& root);

  // The folder of another process that this one may also write blobs into; creates and removes nothing. What is
  // unfinished when the owner starts anew is lost, and its Commit() fails. Errors: NOT_FOUND if our user sees no store
  // there.
  static absl::StatusOr<std::unique_ptr<FileArtifactStore>> OpenShared(const std::string& root);

  std::string Address() const override { return ""; }
  absl::StatusOr<std::unique_ptr<BlobWriter>> PutBlob(const std::string& sha256, int64_t expected_bytes,
                                                      BlobPins* pins = nullptr) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(absl::string_view sha256, int64_t offset) override;
  absl::StatusOr<LocalBlob> MakeLocal(const std::string& sha256) override;
  absl::StatusOr<std::string> SignBlob(absl::string_view sha256, absl::Duration lifetime) override;

  // Makes a blob of another store this one's too: a link where both are on one disk, else a copy. Every byte is read
  // and checked, and a damaged blob of this store is replaced. Errors: NOT_FOUND; DATA_LOSS if it is damaged there;
  // RESOURCE_EXHAUSTED.
  absl::Status AddFrom(FileArtifactStore& other, const std::string& sha256);

  // Where a blob lies, for programs on the same machine that only read it.
  absl::StatusOr<std::string> BlobPath(absl::string_view sha256) const;

  // The same for a process that shares the folder `root` with its owner. `sha256` must be one.
  static std::string BlobPathIn(const std::string& root, absl::string_view sha256);

 private:
  explicit FileArtifactStore(std::string root) : root_(std::move(root)) {}
  absl::StatusOr<File> Stat(const std::string& path) override;
  absl::StatusOr<std::string> ReadText(const std::string& path) override;
  absl::Status WriteNew(const std::string& path, const std::string& text) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<File>> List(const std::string& folder) override;

  const std::string root_;
  // Of WriteNew(), which looks whether a name is free and takes it. Enough, since others than the folder's owner write
  // blobs only; a link() or renameat2() that takes free names only is not on every file system.
  std::mutex naming_;
  // Bytes that are just being written. Shared with the writers, which may outlive the store.
  const std::shared_ptr<std::atomic<int64_t>> writing_ = std::make_shared<std::atomic<int64_t>>(0);
};

// Bytes that an unprivileged process may still write to the disk of `folder`.
absl::StatusOr<int64_t> FreeBytes(const std::string& folder);

}  // namespace luthier
