// The one way to add a job: against the jobs in memory and those on record.
#pragma once

#include <string>

#include "server/core/state.h"
#include "server/store/store.h"

namespace luthier {

// Adds `job`, or replaces it by the one that the same request created before. Loop thread only.
// Errors: as State::Create.
absl::Status CreateJob(State& state, Store& store, Job& job, const JobRequest& request, std::string spec, absl::Time now);

}  // namespace luthier
