// What a submitted job comes to, whichever call submits it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "luthier/v1/jobs.pb.h"
#include "server/core/state.h"
#include "server/rpc/backend.h"

namespace luthier {

// A job that can be created, and what the record holds of it besides.
struct Submission {
  Job job;
  std::shared_ptr<const Plan> plan;
  v1::FineTuningJob own;  // what it has beside the plan: uid, labels

  // For State::Create.
  SpecBytes Spec() const;
  // Of the v1::FineTuningJob that the caller gets.
  std::string Bytes() const;
};

void CheckPriority(int priority, std::vector<std::string>& violations);
void CheckLabels(const v1::FineTuningJob& job, std::vector<std::string>& violations);
// What is wrong with what a job has beside its spec.
void CheckJob(const v1::FineTuningJob& job, std::vector<std::string>& violations);

void CheckRetention(const v1::FineTuningJob& job, std::vector<std::string>& violations);
// A deadline lies after `now`.
void CheckDeadline(const v1::FineTuningJob& job, absl::Time now, std::vector<std::string>& violations);
// InfiniteFuture if it has none.
absl::Time DeadlineOf(const v1::FineTuningJob& job);
// Requires: CheckRetention() found nothing.
std::optional<absl::Duration> RetentionOf(const v1::FineTuningJob& job);
void CheckRequestId(const std::string& id, std::vector<std::string>& violations);

// The words of another tenant's job are not for the caller.
absl::Status WithoutOthers(const Call& call, absl::Status status);

// What a spec names and the caller does not have, of each the field. Errors: NOT_FOUND; INVALID_ARGUMENT for no name.
absl::Status CheckNames(Backend& backend, const Call& call, const v1::FineTuningSpec& spec);

// Whether it goes on from a version of a model, or exports one.
bool NamesVersion(const v1::FineTuningSpec& spec);

// Whose a job is going to be: the token's, or whose the caller wants it to be.
std::string TenantOf(const Call& call, const std::string& wanted = "");

// Checks what a spec names for the caller, and plans it, unless its plan is `known` already, in the turn of `tenant`
// and as long as the caller waits. Errors: as Planner::PlanOf, with all that is wrong with the spec and what it names.
absl::StatusOr<std::shared_ptr<const Plan>> PlanFor(Backend& backend, const Call& call, const std::string& tenant,
                                                    const v1::FineTuningSpec& spec,
                                                    std::shared_ptr<const Plan> known = nullptr);

// Requires: CheckJob() found nothing. `known`: the plan of its spec, where it was looked up already. Errors: as
// PlanFor(); PERMISSION_DENIED for another tenant.
absl::StatusOr<Submission> Prepare(Backend& backend, const Call& call, const v1::FineTuningJob& job,
                                   const std::string& id, std::shared_ptr<const Plan> known = nullptr);

// The job that the same request created or changed before: a repeated request is answered with it, also if dataset or
// base model are gone by now. Errors: `refusal`, what the request would get else, if there is none; as CheckReplay().
absl::StatusOr<RecordedJob> EarlierOf(Backend& backend, const Call& call, const JobRequest& request,
                                      const absl::Status& refusal);

}  // namespace luthier
