// Following a job from a terminal: `job watch`, and `job submit` and `job cancel` with --watch or --wait.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/command.h"

namespace luthier {

enum class WatchStyle {
  kView,   // a person's view
  kJson,   // every event as one line of JSON
  kQuiet,  // nothing until the job is over
};

// Follows the job to its end and returns its outcome (OutcomeOf). Ctrl-C leaves the job running and says how to go on.
// Events go to `out`. Errors: as JobWatch.
absl::Status FollowJob(CommandContext& context, const std::string& job, WatchStyle style, absl::Duration timeout,
                       bool to_stderr);

}  // namespace luthier
