// Following a job from a terminal: `job watch`, and `job submit` and `job cancel` with --watch or --wait.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/command.h"

namespace luthier {

enum class WatchStyle {
  kView,      // a person's view
  kPrograms,  // every event, as a line of JSON or a document of YAML, on standard output
  kQuiet,     // nothing until the job is over
};

// Follows the job to its end and returns its outcome (OutcomeOf). Ctrl-C leaves the job running and says how to go on.
// Events go to standard error or output. Errors: as JobWatch, but ABORTED with exit code kCancelled after Ctrl-C.
absl::Status FollowJob(CommandContext& context, const std::string& job, WatchStyle style, absl::Duration timeout,
                       bool to_stderr);

}  // namespace luthier
