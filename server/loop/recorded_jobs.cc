#include "server/loop/recorded_jobs.h"

#include <optional>
#include <utility>

#include "lib/base/status_macros.h"
#include "server/core/reason.h"

namespace luthier {

namespace {

// The job of the record that the same request was answered with.
absl::StatusOr<std::optional<Job>> AnswerTo(Store& store, const JobRequest& request) {
  if (request.id.empty()) return std::nullopt;
  LUTHIER_ASSIGN_OR_RETURN(auto earlier, store.FindRequest(request.id));
  if (!earlier) return std::nullopt;
  LUTHIER_RETURN_IF_ERROR(CheckReplay(request, earlier->first, earlier->second.id));
  return std::move(earlier->second);
}

absl::Status CheckFree(Store& store, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<Job> taken, store.FindJob(id));
  return taken ? JobExists(id) : absl::OkStatus();
}

}  // namespace

absl::Status CreateJob(State& state, Store& store, Job& job, const JobRequest& request, SpecBytes spec,
                       absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(std::optional<Job> earlier, AnswerTo(store, request));
  if (earlier) {
    job = *std::move(earlier);
    return absl::OkStatus();
  }
  LUTHIER_RETURN_IF_ERROR(CheckFree(store, job.id));
  return state.Create(job, request, std::move(spec), now);
}

absl::Status CreateSweep(State& state, Store& store, Sweep& sweep, std::vector<Job>& jobs, const JobRequest& request,
                         std::vector<SpecBytes> specs, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(std::optional<Job> earlier, AnswerTo(store, request));
  if (earlier) {
    jobs.front() = *std::move(earlier);
    return absl::OkStatus();
  }
  for (const Job& job : jobs) LUTHIER_RETURN_IF_ERROR(CheckFree(store, job.id));
  return state.CreateSweep(sweep, jobs, request, std::move(specs), now);
}

absl::Status CheckJobs(const State& state, Store& store, const std::vector<Job>& jobs) {
  for (const Job& job : jobs) {
    LUTHIER_RETURN_IF_ERROR(CheckFree(store, job.id));
    LUTHIER_RETURN_IF_ERROR(state.CheckNew(job, static_cast<int64_t>(jobs.size())));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> WasAnswered(const State& state, Store& store, const JobRequest& request) {
  LUTHIER_ASSIGN_OR_RETURN(const Job* const in_this_batch, state.AnswerTo(request));
  if (in_this_batch != nullptr) return true;
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<Job> earlier, AnswerTo(store, request));
  return earlier.has_value();
}

absl::Status BringIn(State& state, Store& store, const std::string& id) {
  if (state.Find(id) != nullptr) return absl::OkStatus();
  LUTHIER_ASSIGN_OR_RETURN(std::optional<Job> job, store.FindJob(id));
  if (!job) return DoesNotExist("jobs/" + id);
  state.Borrow(*std::move(job));
  return absl::OkStatus();
}

}  // namespace luthier
