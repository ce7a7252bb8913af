#include "server/loop/create_job.h"

#include <optional>
#include <utility>

#include "lib/base/status_macros.h"

namespace luthier {

absl::Status CreateJob(State& state, Store& store, Job& job, const JobRequest& request, std::string spec, absl::Time now) {
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

}  // namespace luthier
