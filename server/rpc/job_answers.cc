#include "server/rpc/job_answers.h"

#include <optional>

#include "absl/algorithm/container.h"
#include "lib/base/status_macros.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

std::string IdOf(const v1::FineTuningJob& job) { return job.name().substr(5); }  // after "jobs/"

// Whether a job in this state is told why it does not train.
bool HasReason(const v1::FineTuningJob* job) {
  const auto state = static_cast<JobState>(job->state());
  return IsWaiting(state) || IsResting(state);
}

void SetReason(const WaitReason& reason, v1::FineTuningJob& job) {
  job.set_pending_code(static_cast<v1::PendingReason>(reason.code));
  job.set_pending_reason(reason.message);
}

}  // namespace

absl::StatusOr<RecordedJob> FindJob(Backend& backend, Call& call, const std::string& name, absl::string_view field) {
  call.subject = name;
  LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName(field, "jobs", name));
  LUTHIER_ASSIGN_OR_RETURN(RecordedJob job, backend.store.GetJob(id));
  if (!call.Sees(job.job.tenant)) return DoesNotExist("jobs/" + id);
  return job;
}

absl::Status AddPendingReasons(Backend& backend, const std::vector<v1::FineTuningJob*>& jobs) {
  if (absl::c_none_of(jobs, HasReason)) return absl::OkStatus();
  struct Moved {
    v1::FineTuningJob* message;
    std::optional<Job> live;  // none: it is over
    WaitReason reason;
  };
  std::vector<Moved> moved;
  LUTHIER_RETURN_IF_ERROR(backend.loop.Run([&](State& state, absl::Time now) {
    for (v1::FineTuningJob* job : jobs) {
      if (!HasReason(job)) continue;
      const Job* live = state.Find(IdOf(*job));
      if (live == nullptr) {
        moved.push_back({job, std::nullopt, {}});
      } else if (live->state != static_cast<JobState>(job->state())) {
        moved.push_back({job, *live, state.WhyItWaits(*live, now)});
      } else {
        SetReason(state.WhyItWaits(*live, now), *job);
      }
    }
    return absl::OkStatus();
  }));
  for (const Moved& each : moved) {
    LUTHIER_ASSIGN_OR_RETURN(RecordedJob record, backend.store.GetJob(IdOf(*each.message)));
    if (each.live) record.job = *each.live;
    *each.message = ToProto(record);
    SetReason(each.reason, *each.message);
  }
  return absl::OkStatus();
}

absl::Status AnswerJob(Backend& backend, const RecordedJob& job, v1::FineTuningJob& response) {
  response = ToProto(job);
  return AddPendingReasons(backend, {&response});
}

absl::Status GetJob(Backend& backend, Call& call, const std::string& name, v1::FineTuningJob& response) {
  LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, FindJob(backend, call, name));
  return AnswerJob(backend, job, response);
}

}  // namespace luthier
