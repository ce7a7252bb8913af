// A sweep in words and tables.
#pragma once

#include <string>

#include "client/cli/command.h"
#include "client/cli/terminal.h"
#include "luthier/v1/sweeps.pb.h"

namespace luthier {

// `2 QUEUED, 1 RUNNING`.
std::string SweepJobCounts(const v1::Sweep& sweep);

// A row a job: its values, and what it came to.
std::string SweepJobsTable(const v1::Sweep& sweep, const Terminal& terminal);

// Its name and how far its jobs are; for programs the sweep.
void PrintSweepLine(CommandContext& context, const v1::Sweep& sweep);

}  // namespace luthier
