// One attempt from its spec to its artifact: `luthier-trainer run`.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "lib/plan/trainer_spec.h"
#include "worker/trainer/distributed/ranks.h"
#include "worker/trainer/train/events.h"

namespace luthier {

// Trains (or exports) as the spec says and leaves everything in `out_folder`, going on from its newest checkpoint if
// there is one. Tells all through `events`, the last one included (`finished`, `failed` or `stopped`). OK for finished
// and stopped. If there are several ranks, each calls this; only the leading one writes files and obeys `control`.
// ABORTED: another rank is gone; nothing was told, since only who sees them all knows why.
absl::Status RunAttempt(const TrainerSpec& spec, const std::string& out_folder, const RankPlace& place,
                        EventWriter& events, RunControl& control);

// The `cause` of a `failed` event for an error.
std::string FailureCause(const absl::Status& status);

}  // namespace luthier
