#include "client/lib/local_disk.h"

namespace luthier {

absl::Status OnOurDisk(const absl::Status& status) {
  if (!absl::IsPermissionDenied(status) && !absl::IsNotFound(status)) return status;
  return absl::FailedPreconditionError(status.message());
}

}  // namespace luthier
