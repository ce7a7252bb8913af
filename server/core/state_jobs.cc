// What users ask of jobs: new ones and sweeps of them, every step of a job, and changes of its values.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/reason.h"
#include "server/core/state.h"

namespace luthier {
namespace {

// The words are the same whoever has the name.
absl::Status ModelTaken(const Job& job) {
  const std::string taken =
      job.model.empty() || job.model == job.id
          ? absl::StrCat("job_id: '", job.id,
                         "' is taken as the name of a model; choose another one, or give an output_model")
          : absl::StrCat("output_model: '", job.model, "' is taken; choose another one");
  return WithReason(absl::AlreadyExistsError(taken), "MODEL_NAME_TAKEN");
}

// For whoever reads the history of the job.
std::string WhatChanges(const JobUpdate& update) {
  std::vector<std::string> changes;
  if (update.priority) changes.push_back(absl::StrCat("priority ", *update.priority));
  if (update.labels) changes.emplace_back("labels");
  if (update.retention) changes.emplace_back("retention");
  if (update.deadline) changes.emplace_back("deadline");
  return absl::StrJoin(changes, ", ");
}

// A job in one of these is resumed or released already.
std::vector<JobState> GoingOn() {
  return {JobState::kQueued,     JobState::kStarting,   JobState::kRunning,
          JobState::kRecovering, JobState::kPreempting, JobState::kPublishing};
}

}  // namespace

absl::Status JobExists(const std::string& id) {
  return WithReason(absl::AlreadyExistsError(absl::StrCat("job_id: jobs/", id, " exists; choose another one")),
                    "JOB_ID_TAKEN");
}

absl::Status CheckReplay(const JobRequest& repeated, const JobRequest& first, const std::string& job) {
  if (repeated.body_sha256 == first.body_sha256) return absl::OkStatus();
  return WithReason(absl::AlreadyExistsError(absl::StrCat("request_id: ", repeated.id, " was used for jobs/", job,
                                                          " with another body; choose a new one")),
                    "REQUEST_ID_REUSED");
}

absl::StatusOr<const Job*> State::AnswerTo(const JobRequest& request) const {
  const auto found = fresh_requests_.find(request.id);
  if (request.id.empty() || found == fresh_requests_.end()) return nullptr;
  const auto& [first, id] = found->second;
  if (absl::Status status = CheckReplay(request, first, id); !status.ok()) return status;
  return Find(id);
}

void State::Remember(const JobRequest& request, const Job& job) {
  if (request.id.empty()) return;
  fresh_requests_[request.id] = {request, job.id};
  writes_.requests.emplace_back(request, job.number);
}

// Those on hold or paused count, since their tenant can have all of them wait in a moment.
absl::Status State::CheckQueue(const std::string& id, int64_t jobs) const {
  const auto tenant = tenants_.find(id);
  const int64_t limit = tenant == tenants_.end() ? 0 : tenant->second.max_queued_jobs;
  const JobTable::Load load = jobs_.LoadOf(id);
  if (limit == 0 || load.waiting + load.resting + jobs <= limit) return absl::OkStatus();
  return TenantMayNotHaveMore(
      id,
      absl::StrCat("tenant ", id, " has ", load.waiting, load.waiting == 1 ? " waiting job" : " waiting jobs",
                   load.resting > 0 ? absl::StrCat(" and ", load.resting, " on hold or paused") : "", " and may have ",
                   limit, "; wait for one, or cancel one"),
      "TENANT_QUEUE_FULL");
}

absl::Status State::CheckNew(const Job& job, int64_t jobs) const {
  if (Find(job.id) != nullptr) return JobExists(job.id);
  if (IsOfAnother(job.model.empty() ? job.id : job.model, job.tenant)) return ModelTaken(job);
  if (jobs_.size() + static_cast<size_t>(jobs) > options_.max_live_jobs) {
    const absl::Status full =
        absl::ResourceExhaustedError(absl::StrCat("the queue holds ", jobs_.size(), " jobs; try again later"));
    return WithQuota(WithReason(full, "QUEUE_FULL"), "queue");
  }
  if (absl::Status status = CheckQueue(job.tenant, jobs); !status.ok()) return status;
  if (absl::Status status = CheckStorage(job.tenant, 1); !status.ok()) return status;
  for (const std::string& name : ResourcesOf(job)) {
    if (!Exists(name)) return DoesNotExist(name);
  }
  return absl::OkStatus();
}

void State::AddNew(Job& job, const JobRequest& request, SpecBytes spec, absl::Time now) {
  job.number = ++last_number_;
  job.create_time = job.waiting_since = now;
  if (job.model.empty()) job.model = job.id;
  Remember(request, job);
  job.last_event = 1;
  writes_.new_jobs.push_back({job.number, std::move(spec)});
  writes_.events.push_back({.job = job.number,
                            .sequence = job.last_event,
                            .time = now,
                            .type = "state",
                            .message = job.state == JobState::kHeld ? "created on hold" : "queued",
                            .state = static_cast<int>(job.state)});
  jobs_.Insert(job);
  unsettled_ = true;
}

absl::Status State::Create(Job& job, const JobRequest& request, SpecBytes spec, absl::Time now) {
  const absl::StatusOr<const Job*> earlier = AnswerTo(request);
  if (!earlier.ok()) return earlier.status();
  if (*earlier != nullptr) {
    job = **earlier;
    return absl::OkStatus();
  }
  if (absl::Status status = CheckNew(job, 1); !status.ok()) return status;
  AddNew(job, request, std::move(spec), now);
  return absl::OkStatus();
}

absl::Status State::CreateSweep(Sweep& sweep, std::vector<Job>& jobs, const JobRequest& request,
                                std::vector<SpecBytes> specs, absl::Time now) {
  const absl::StatusOr<const Job*> earlier = AnswerTo(request);
  if (!earlier.ok()) return earlier.status();
  if (*earlier != nullptr) {
    jobs.front() = **earlier;
    return absl::OkStatus();
  }
  for (const Job& job : jobs) {
    if (absl::Status status = CheckNew(job, static_cast<int64_t>(jobs.size())); !status.ok()) return status;
  }
  sweep.first_job = last_number_ + 1;
  sweep.jobs = static_cast<int>(jobs.size());
  sweep.create_time = now;
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].sweep = sweep.first_job;
    AddNew(jobs[i], i == 0 ? request : JobRequest{}, std::move(specs[i]), now);
  }
  writes_.sweeps.push_back(sweep);
  return absl::OkStatus();
}

// A state in `already` has what is asked for.
absl::Status State::Ask(const std::string& id, JobInput input, const std::vector<JobState>& already,
                        const std::string& message, const std::string& remedy, absl::Time now) {
  const Job* job = Find(id);
  if (job == nullptr) return DoesNotExist("jobs/" + id);
  if (std::count(already.begin(), already.end(), job->state) > 0) return absl::OkStatus();
  if (!NextState(job->state, input)) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("jobs/", id, " is ", StateName(job->state), "; ", remedy)),
        IsTerminal(job->state) ? "JOB_IS_OVER" : "WRONG_STATE");
  }
  jobs_.Update(*job, [](Job& j) { ++j.revision; });
  Apply(*job, input, message, now);
  if (IsStopping(job->state)) Send(Effect::Kind::kStop, *job);
  return absl::OkStatus();
}

absl::Status State::Cancel(const std::string& id, absl::Time now) {
  return Ask(id, JobInput::kCancelRequested, {JobState::kCancelling, JobState::kCancelled}, "cancelled by a user",
             "only a job that is not over can be cancelled", now);
}

absl::Status State::Pause(const std::string& id, absl::Time now) {
  return Ask(id, JobInput::kPauseRequested, {JobState::kPausing, JobState::kPaused}, "paused by a user",
             "only a job that waits or trains can be paused", now);
}

absl::Status State::Resume(const std::string& id, absl::Time now) {
  return Ask(id, JobInput::kResumeRequested, GoingOn(), "resumed by a user",
             "only a job that is PAUSED or PAUSING can be resumed", now);
}

absl::Status State::StartHeld(const std::string& id, absl::Time now) {
  return Ask(id, JobInput::kStartRequested, GoingOn(), "released by a user", "only a job that is HELD can be started",
             now);
}

absl::Status State::Retry(const std::string& id, absl::Time now, bool inputs_remain) {
  const Job* job = Find(id);
  if (job == nullptr) return DoesNotExist("jobs/" + id);
  const auto ask = [&] {
    return Ask(id, JobInput::kRetryRequested, {}, "retried by a user",
               "only a job that failed or was cancelled can be tried again", now);
  };
  if (!NextState(job->state, JobInput::kRetryRequested)) return ask();  // whatever else it lacks would not help it
  for (const std::string& name : ResourcesOf(*job)) {
    if (!Exists(name)) {
      return WithReason(absl::FailedPreconditionError(absl::StrCat("jobs/", id, " cannot be tried again: ", name,
                                                                   " was deleted; clone the job with what there is")),
                        "INPUT_DELETED");
    }
  }
  if (!inputs_remain) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("jobs/", id,
                                                   " cannot be tried again: its dataset or base model was deleted, and "
                                                   "the name is that of another one; clone the job to take that")),
        "INPUT_DELETED");
  }
  // While it was over, the name was free.
  if (IsOfAnother(job->model, job->tenant)) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("output_model: '", job->model, "' is taken by now, so jobs/", id,
                                                   " cannot be tried again; clone it with another one")),
        "MODEL_NAME_TAKEN");
  }
  if (absl::Status status = CheckQueue(job->tenant, 1); !status.ok()) return status;
  if (job->deadline <= now) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat("deadline: that of jobs/", id,
                                                                 " is over; give it another one (`luthier job update ",
                                                                 id, " --deadline`) and try again")),
                      "DEADLINE_OVER");
  }
  if (absl::Status status = ask(); !status.ok()) return status;
  jobs_.Update(*job, [&](Job& j) {
    j.lost_attempts = 0;
    j.lost_on.clear();
    j.crashed_on.clear();
    j.not_before = absl::InfinitePast();
    j.end_time = absl::InfinitePast();
  });
  return absl::OkStatus();
}

absl::Status State::Update(const std::string& id, const JobUpdate& update, absl::Time now) {
  const Job* job = Find(id);
  if (job == nullptr) return DoesNotExist("jobs/" + id);
  if (update.revision != 0 && update.revision != job->revision) {
    return WithReason(
        absl::AbortedError(absl::StrCat("etag: jobs/", id, " was changed by someone else; get it and try again")),
        "CHANGED_MEANWHILE");
  }
  // The deadline of a job that can be tried again counts once it is.
  const bool ended_for_good = IsTerminal(job->state) && !NextState(job->state, JobInput::kRetryRequested);
  if ((update.priority && IsTerminal(job->state)) || (update.deadline && ended_for_good)) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            update.priority ? "priority" : "deadline", ": jobs/", id, " is ", StateName(job->state), "; only labels",
            ended_for_good ? " and retention" : ", retention and deadline", " of such a job can be changed")),
        "WRONG_STATE");
  }
  jobs_.Update(*job, [&](Job& j) {
    ++j.revision;
    if (update.priority) j.priority = *update.priority;
    if (update.retention) j.retention = *update.retention;
    if (update.deadline) j.deadline = *update.deadline;
  });
  if (update.labels) writes_.labels.push_back({job->number, *update.labels});
  AddEvent(*job, {.attempt = job->attempt, .type = "updated", .message = WhatChanges(update)}, now);
  unsettled_ = true;
  return absl::OkStatus();
}

absl::Status State::Checkpoint(const std::string& id) {
  const Job* job = Find(id);
  if (job == nullptr) return DoesNotExist("jobs/" + id);
  if (job->state != JobState::kRunning) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("jobs/", id, " is ", StateName(job->state),
                                                   "; only a job that is RUNNING can write a checkpoint")),
        "WRONG_STATE");
  }
  Send(Effect::Kind::kCheckpoint, *job);
  return absl::OkStatus();
}

}  // namespace luthier
