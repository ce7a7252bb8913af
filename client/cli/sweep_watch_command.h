// Following a sweep from a terminal: `sweep watch`, and `sweep create` with --watch.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/command.h"

namespace luthier {

// A line whenever something has changed, until every job is over, across restarts of the server; then what they came
// to. Ctrl-C leaves the sweep running. Errors: ABORTED if a job failed, CANCELLED if one was or after Ctrl-C,
// DEADLINE_EXCEEDED, and those of Client::GetSweep().
absl::Status FollowSweep(CommandContext& context, const std::string& name, absl::Duration timeout);

}  // namespace luthier
