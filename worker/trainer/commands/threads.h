// The threads that a command computes with.
#pragma once

#include "absl/status/status.h"
#include "lib/plan/job_spec.h"

namespace luthier {

// As many as `resources` say, or else as LibTorch takes by itself; `ranks` processes divide them. Errors:
// INVALID_ARGUMENT for more than this machine can run at a time.
absl::Status UseThreads(const ResourceSpec& resources, int ranks);

}  // namespace luthier
