// The training loop.
#pragma once

#include "absl/status/status.h"
#include "worker/trainer/train/events.h"
#include "worker/trainer/train/preparation.h"

namespace luthier {

// Trains `run` to its end, or to a wish to stop, and tells all through `events`. OK for finished and stopped.
// Errors: OUT_OF_RANGE if loss or gradients are not finite; those of checkpoints and exports.
absl::Status Train(Run& run, EventWriter& events, RunControl& control);

}  // namespace luthier
