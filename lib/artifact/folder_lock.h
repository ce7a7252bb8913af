// A folder of which one process at a time may be at work.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace luthier {

// Others that take it wait, or are refused, until this goes or its process ends. Movable.
class FolderLock {
 public:
  // Waits for whoever has it. Errors: those of open and flock, naming the folder, which must exist.
  static absl::StatusOr<FolderLock> Take(const std::string& folder);
  // Errors: UNAVAILABLE if another one has it; as above.
  static absl::StatusOr<FolderLock> TryTake(const std::string& folder);

  FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FolderLock& operator=(FolderLock&& other) = delete;
  ~FolderLock();

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  static absl::StatusOr<FolderLock> Lock(const std::string& folder, int operation);

  int fd_;
};

}  // namespace luthier
