// A folder of which one process at a time may be at work.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "lib/base/descriptor.h"

namespace luthier {

// Others that take it wait, or are refused, until this goes or its process ends. Movable.
class FolderLock {
 public:
  // Waits for whoever has it. Errors: those of open and flock, naming the folder, which must exist.
  static absl::StatusOr<FolderLock> Take(const std::string& folder);
  // Errors: UNAVAILABLE if another one has it; as above.
  static absl::StatusOr<FolderLock> TryTake(const std::string& folder);

 private:
  explicit FolderLock(Descriptor folder) : folder_(std::move(folder)) {}
  static absl::StatusOr<FolderLock> Lock(const std::string& folder, int operation);

  Descriptor folder_;
};

}  // namespace luthier
