// Commands that need the record besides the state. Loop thread only.
#pragma once

#include <string>
#include <vector>

#include "server/core/state.h"
#include "server/store/store.h"

namespace luthier {

// Adds `job`, or replaces it by the one that the same request created before. Errors: as State::Create.
absl::Status CreateJob(State& state, Store& store, Job& job, const JobRequest& request, SpecBytes spec, absl::Time now);

// Adds a sweep with all of its jobs, or replaces the first of them by the one that the same request created before.
// Errors: as State::CreateSweep.
absl::Status CreateSweep(State& state, Store& store, Sweep& sweep, std::vector<Job>& jobs, const JobRequest& request,
                         std::vector<SpecBytes> specs, absl::Time now);

// Whether the jobs could be created together now. Errors: as State::Create.
absl::Status CheckJobs(const State& state, Store& store, const std::vector<Job>& jobs);

// Whether the same request was answered before. Errors: as CheckReplay.
absl::StatusOr<bool> WasAnswered(const State& state, Store& store, const JobRequest& request);

// Makes the state know a job that is over, for a step within this batch. Errors: NOT_FOUND.
absl::Status BringIn(State& state, Store& store, const std::string& id);

}  // namespace luthier
