// A file that is either there, complete and on disk, or not there at all.
// Recipe (All File Systems Are Not Created Equal, OSDI 2014): temporary name in the same directory, write, fsync,
// rename, fsync of the directory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/descriptor.h"

namespace luthier {

// A file being written. Without Commit() nothing of it stays. Owned by one thread; movable.
class DurableFile {
 public:
  // Opens a temporary file beside `path`; its folder must exist.
  // Errors: NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED (disk full), each naming the path.
  static absl::StatusOr<DurableFile> Create(const std::string& path);

  DurableFile(DurableFile&& other) noexcept = default;
  DurableFile& operator=(DurableFile&& other) = delete;
  ~DurableFile();

  // Errors: RESOURCE_EXHAUSTED if the disk is full, with the remedy; DATA_LOSS for an I/O error.
  absl::Status Append(std::span<const std::byte> bytes);

  // Makes it as long, with zeros that take no space.
  absl::Status ExtendTo(int64_t bytes);

  // Makes the file durable under its final name. After an error it does not exist under that name (unless it did
  // before).
  absl::Status Commit() { return CommitAs(path_); }

  // The same under a name that was not known at the start, on the same disk; its folder must exist.
  absl::Status CommitAs(const std::string& path);

 private:
  DurableFile(std::string path, std::string temporary, Descriptor file);
  std::string path_;
  std::string temporary_;
  Descriptor file_;  // closed once committed or moved from
};

// Writes a whole file durably.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content);

// Creates `folder` and what is missing above it, durably.
absl::Status CreateFolders(const std::string& folder);

// The status of a failed system call on a file, with the remedy where there is one.
absl::Status FileError(const std::string& path, absl::string_view action, int error);

// Makes renames and new names in a folder durable.
absl::Status SyncFolder(const std::string& folder);

}  // namespace luthier
