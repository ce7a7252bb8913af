// The disk of this machine, told apart from what answers over the network.
#pragma once

#include "absl/status/status.h"

namespace luthier {

// Of a step that reaches nothing but this machine's disk: FAILED_PRECONDITION in place of PERMISSION_DENIED and
// NOT_FOUND, which would read like a server's refusal or a name that it does not know, also by the exit code.
absl::Status OnOurDisk(const absl::Status& status);

}  // namespace luthier
