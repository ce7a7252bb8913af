#include "server/loop/recorded_jobs.h"

#include <optional>
#include <utility>

#include "lib/base/status_macros.h"
#include "server/core/reason.h"

namespace luthier {

absl::Status CreateJob(State& state, Store& store, Job& job, const JobRequest& request, std::string spec,
                       absl::Time now) {
  if (!request.id.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const auto earlier, store.FindRequest(request.id));
    if (earlier) {
      LUTHIER_RETURN_IF_ERROR(CheckReplay(request, earlier->first, earlier->second.id));
      job = earlier->second;
      return absl::OkStatus();
    }
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<Job> taken, store.FindJob(job.id));
  if (taken) return JobExists(job.id);
  return state.Create(job, request, std::move(spec), now);
}

absl::Status BringIn(State& state, Store& store, const std::string& id) {
  if (state.Find(id) != nullptr) return absl::OkStatus();
  LUTHIER_ASSIGN_OR_RETURN(std::optional<Job> job, store.FindJob(id));
  if (!job) return DoesNotExist("jobs/" + id);
  state.Borrow(*std::move(job));
  return absl::OkStatus();
}

}  // namespace luthier
