#pragma once

#include "client/cli/command.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// What became of a job: its name and state, or all of it for programs.
void PrintJobLine(CommandContext& context, const v1::FineTuningJob& job);

}  // namespace luthier
