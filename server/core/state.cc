#include "server/core/state.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

// Walking all nodes more often would find leases that ran out no sooner than anybody notices.
constexpr absl::Duration kLeaseCheck = absl::Milliseconds(250);
// A head of the queue that fits nowhere must not make every cycle walk through a million jobs behind it.
constexpr size_t kCandidates = 500;
// Nor those of sweeps that run as many jobs as they may.
constexpr size_t kLooks = 10000;

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9); }

// With the most that a node it may run on has of what is missing.
std::string TooLargeFor(const Job& job, const std::map<std::string, Node>& nodes) {
  int devices = 0;
  int64_t memory = 0, needed = 0;
  for (const auto& [id, node] : nodes) {
    if (!node.TakesWork() || !HasLabels(node, job)) continue;
    devices = std::max(devices, node.devices);
    for (const int64_t bytes : node.memory) {
      if (bytes > memory) needed = MemoryFor(job, node);
      memory = std::max(memory, bytes);
    }
  }
  if (devices < job.devices) {
    return absl::StrCat("the job asks for ", job.devices, " devices and the largest connected node has ", devices);
  }
  return absl::StrCat("the job needs ", Gigabytes(needed), " on ",
                      job.devices == 1 ? "a device" : absl::StrCat("each of ", job.devices, " devices"),
                      " and no connected node has that; the largest device has ", Gigabytes(memory));
}

std::string MessageOf(const Decision& decision, const std::map<std::string, Node>& nodes) {
  const Job& job = *decision.job;
  int ready = 0;
  for (const auto& [id, node] : nodes) ready += node.TakesWork() ? 1 : 0;
  switch (decision.wait) {
    case Wait::kNoNode:
      return nodes.empty() ? "no node is connected; start luthier-worker on a machine"
                           : "no node is connected that takes jobs";
    case Wait::kTooLarge: return TooLargeFor(job, nodes);
    case Wait::kNoMatch:
      return absl::StrCat(
          "no connected node has the labels ", job.node_selector,
          "; start a worker with them (`luthier-worker --label`), or give another resources.node_selector");
    case Wait::kBusy:
      return ready == 1 ? "the connected node is busy" : absl::StrCat("all ", ready, " connected nodes are busy");
    case Wait::kReserved: return "the free devices are kept for a job that comes before it";
    case Wait::kMakingRoom:
      return absl::StrCat("node ", decision.node, " will have room: less urgent attempts are stopping there");
    case Wait::kTenantLimit: return absl::StrCat("tenant ", job.tenant, " runs as much as it may");
    default: return "it is about to start";
  }
}

// If the job would fit on a node that is quarantined: the one that is released first.
const Node* QuarantinedNodeFor(const Job& job, const std::map<std::string, Node>& nodes) {
  const Node* first = nullptr;
  for (const auto& [id, node] : nodes) {
    if (!node.ready || node.draining || !node.IsQuarantined() || !CouldRun(job, node)) continue;
    if (first == nullptr || node.quarantine_end < first->quarantine_end) first = &node;
  }
  return first;
}

// The words are the same whoever has the name.
absl::Status ModelTaken(const Job& job) {
  const std::string taken =
      job.model.empty() || job.model == job.id
          ? absl::StrCat("job_id: '", job.id,
                         "' is taken as the name of a model; choose another one, or give an output_model")
          : absl::StrCat("output_model: '", job.model, "' is taken; choose another one");
  return WithReason(absl::AlreadyExistsError(taken), "MODEL_NAME_TAKEN");
}

// A batch that could not be written is undone, but the clock stays where it is: then they are moved once more.
void MoveDelays(JobTable& jobs, std::vector<std::function<void()>>& undo, absl::Duration by) {
  for (const Job* job : jobs.Delayed()) {
    jobs.Update(*job, [&](Job& j) { j.not_before += by; });
  }
  undo.push_back([&jobs, &undo, by] { MoveDelays(jobs, undo, by); });
}

}  // namespace

absl::Status JobExists(const std::string& id) {
  return WithReason(absl::AlreadyExistsError(absl::StrCat("job_id: jobs/", id, " exists; choose another one")),
                    "JOB_ID_TAKEN");
}

absl::Duration RetryDelay(int lost) {
  if (lost <= 1) return absl::Seconds(1);
  return std::min(absl::Minutes(10), absl::Seconds(10) * (1 << std::min(lost - 2, 10)));
}

std::string NameOfVersion(const std::string& model, int version) {
  return absl::StrCat("models/", model, "/versions/", version);
}

std::string ResourceName(ResourceKind kind, const std::string& id) {
  return absl::StrCat(kind == ResourceKind::kDataset ? "datasets/" : "baseModels/", id);
}

absl::Status CheckReplay(const JobRequest& repeated, const JobRequest& first, const std::string& job) {
  if (repeated.body_sha256 == first.body_sha256) return absl::OkStatus();
  return WithReason(absl::AlreadyExistsError(absl::StrCat("request_id: ", repeated.id, " was used for jobs/", job,
                                                          " with another body; choose a new one")),
                    "REQUEST_ID_REUSED");
}

void State::LoadJob(std::unique_ptr<Job> job, absl::Time now) {
  if (HoldsDevices(job->state)) {
    Node& node = nodes_[job->node];
    node.id = job->node;
    node.deadline = now + kLease;
  }
  job->waiting_since = job->attempt == 0 ? job->create_time : now;
  last_number_ = std::max(last_number_, job->number);
  jobs_.LoadJob(std::move(job));
}

// If the clock was set back while the server was away, it lasts no longer than any other.
void State::LoadQuarantine(const Quarantine& quarantine, absl::Time now) {
  if (quarantine.end <= now) return;
  Node& node = nodes_[quarantine.node];
  node.id = quarantine.node;
  node.quarantine_end = std::min(quarantine.end, now + kQuarantine);
  for (const std::string& job : quarantine.jobs) node.losses[job] = node.quarantine_end - kQuarantine;
}

void State::BeginEpoch(int epoch, absl::Time now) {
  undo_.push_back([this, before = epoch_] { epoch_ = before; });
  epoch_ = epoch;
  writes_.epoch = {epoch, now};
  std::vector<const Job*> held;
  jobs_.ForEach([&](const Job& job) {
    if (HoldsDevices(job.state)) held.push_back(&job);
  });
  std::sort(held.begin(), held.end(), [](const Job* a, const Job* b) { return a->number < b->number; });
  for (const Job* job : held) {
    Apply(*job, JobInput::kAttemptLost,
          absl::StrCat("attempt ", job->attempt, " is from before the server was restored from a backup"), now);
  }
}

void State::Borrow(Job job) { jobs_.Borrow(std::move(job)); }

bool State::IsCurrent(const AttemptId& attempt) const {
  const Job* job = Find(attempt.job);
  return job != nullptr && HoldsDevices(job->state) && job->attempt == attempt.attempt;
}

absl::StatusOr<const Job*> State::CreatedBy(const JobRequest& request) const {
  const auto found = fresh_requests_.find(request.id);
  if (request.id.empty() || found == fresh_requests_.end()) return nullptr;
  const auto& [first, id] = found->second;
  if (absl::Status status = CheckReplay(request, first, id); !status.ok()) return status;
  return Find(id);
}

absl::Status State::CheckNew(const Job& job, int64_t jobs) const {
  if (Find(job.id) != nullptr) return JobExists(job.id);
  if (IsOfAnother(job.model.empty() ? job.id : job.model, job.tenant)) return ModelTaken(job);
  if (jobs_.size() + static_cast<size_t>(jobs) > options_.max_live_jobs) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat("the queue holds ", jobs_.size(), " jobs; try again later")),
        "QUEUE_FULL");
  }
  const auto tenant = tenants_.find(job.tenant);
  const int64_t limit = tenant == tenants_.end() ? 0 : tenant->second.max_queued_jobs;
  if (const int64_t waiting = jobs_.LoadOf(job.tenant).waiting; limit > 0 && waiting + jobs > limit) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat("tenant ", job.tenant, " has ", waiting,
                                                                " waiting jobs and may have ", limit,
                                                                "; wait for one, or cancel one")),
                      "TENANT_QUEUE_FULL");
  }
  for (const std::string& name : ResourcesOf(job)) {
    if (!Exists(name)) return DoesNotExist(name);
  }
  return absl::OkStatus();
}

bool State::Exists(const std::string& name) const {
  return absl::StartsWith(name, "models/") ? deleted_versions_.count(name) == 0 : resources_.count(name) > 0;
}

bool State::IsOfAnother(const std::string& model, const std::string& tenant) const {
  const auto published = models_.find(model);
  if (published != models_.end() && published->second.latest > 0 && published->second.tenant != tenant) return true;
  const std::string* publisher = jobs_.PublisherOf(model);
  return publisher != nullptr && *publisher != tenant;
}

void State::AddNew(Job& job, const JobRequest& request, SpecBytes spec, absl::Time now) {
  job.number = ++last_number_;
  job.create_time = job.waiting_since = now;
  if (job.model.empty()) job.model = job.id;
  if (!request.id.empty()) fresh_requests_[request.id] = {request, job.id};
  job.last_event = 1;
  writes_.new_jobs.push_back({job.number, request, std::move(spec)});
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
  const absl::StatusOr<const Job*> earlier = CreatedBy(request);
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
  const absl::StatusOr<const Job*> earlier = CreatedBy(request);
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
  return Ask(id, JobInput::kResumeRequested,
             {JobState::kQueued, JobState::kStarting, JobState::kRunning, JobState::kRecovering, JobState::kPublishing},
             "resumed by a user", "only a job that is PAUSED can be resumed", now);
}

absl::Status State::StartHeld(const std::string& id, absl::Time now) {
  return Ask(id, JobInput::kStartRequested,
             {JobState::kQueued, JobState::kStarting, JobState::kRunning, JobState::kRecovering, JobState::kPublishing},
             "released by a user", "only a job that is HELD can be started", now);
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
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat("jobs/", id, " cannot be tried again: ", name, " was deleted")),
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
  if (job->deadline <= now) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat("deadline: that of jobs/", id,
                                                                 " is over; give it another one (`luthier job update ",
                                                                 id, " --deadline`) and try again")),
                      "DEADLINE_OVER");
  }
  if (absl::Status status = ask(); !status.ok()) return status;
  jobs_.Update(*job, [&](Job& j) {
    j.lost_attempts = j.lost_here = 0;
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
  if (update.priority && IsTerminal(job->state)) {
    return WithReason(absl::FailedPreconditionError(
                          absl::StrCat("priority: jobs/", id, " is ", StateName(job->state),
                                       "; only labels, retention and deadline of a job that is over can be changed")),
                      "WRONG_STATE");
  }
  jobs_.Update(*job, [&](Job& j) {
    ++j.revision;
    if (update.priority) j.priority = *update.priority;
    if (update.retention) j.retention = *update.retention;
    if (update.deadline) j.deadline = *update.deadline;
  });
  if (update.labels) writes_.labels.push_back({job->number, *update.labels});
  AddEvent(*job,
           {.attempt = job->attempt,
            .type = "updated",
            .message = update.priority    ? absl::StrCat("priority ", job->priority)
                       : update.labels    ? "labels"
                       : update.retention ? "retention"
                                          : "deadline"},
           now);
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

void State::SetTenant(const Tenant& tenant, absl::Time now) {
  Tenant& mine = ChangeTenant(tenant.id);
  Tenant changed = tenant;
  changed.usage = mine.UsageAt(now);
  changed.usage_time = now;
  mine = changed;
  unsettled_ = true;
}

void State::Charge(const std::string& tenant, double device_seconds, absl::Time now) {
  ChangeTenant(tenant).Charge(device_seconds, now);
}

Tenant& State::ChangeTenant(const std::string& id) {
  const auto [entry, added] = tenants_.try_emplace(id, Tenant{.id = id});
  if (added) {
    undo_.push_back([this, id] { tenants_.erase(id); });
  } else {
    undo_.push_back([this, before = entry->second] { tenants_[before.id] = before; });
  }
  changed_tenants_.insert(id);
  return entry->second;
}

absl::Status State::Drain(const std::string& id, bool requeue, absl::Time now) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return DoesNotExist("nodes/" + id);
  node->second.draining = true;
  undo_.push_back([this, id, before = drained_.count(id) > 0] {
    if (!before) drained_.erase(id);
    nodes_[id].draining = before;
  });
  drained_.insert(id);
  writes_.drained.emplace_back(id, true);
  if (!requeue) return absl::OkStatus();
  const std::set<std::string> attempts = jobs_.OnNode(id);
  for (const std::string& job_id : attempts) {
    const Job& job = *Find(job_id);
    if (NextState(job.state, JobInput::kPreempted)) Preempt(job, absl::StrCat("node ", id, " is being drained"), now);
  }
  return absl::OkStatus();
}

absl::Status State::Undrain(const std::string& id) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end() && drained_.count(id) == 0) return DoesNotExist("nodes/" + id);
  if (node != nodes_.end()) {
    undo_.push_back([this, before = node->second] { nodes_[before.id] = before; });
    if (node->second.IsQuarantined()) writes_.quarantines.push_back({.node = id});
    node->second.draining = false;
    node->second.losses.clear();
    node->second.quarantine_end = absl::InfinitePast();
  }
  if (drained_.erase(id) > 0) {
    undo_.push_back([this, id] { drained_.insert(id); });
    writes_.drained.emplace_back(id, false);
  }
  unsettled_ = true;
  return absl::OkStatus();
}

absl::Status State::SetAlias(Alias alias) {
  const auto model = models_.find(alias.model);
  const std::string name = NameOfVersion(alias.model, alias.version);
  if (model == models_.end() || alias.version > model->second.latest || !Exists(name)) return DoesNotExist(name);
  writes_.aliases.push_back(std::move(alias));
  return absl::OkStatus();
}

absl::Status State::DeleteVersion(const std::string& model, int version, const std::vector<Alias>& aliases) {
  const std::string name = NameOfVersion(model, version);
  const auto found = models_.find(model);
  if (found == models_.end() || version > found->second.latest || !Exists(name)) return DoesNotExist(name);
  for (const std::vector<Alias>& list : {aliases, writes_.aliases}) {
    for (const Alias& alias : list) {
      if (alias.model != model || alias.version != version) continue;
      return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is what the alias ", alias.name,
                                                                   " points to; point it to another version, or delete "
                                                                   "it first")),
                        "IN_USE");
    }
  }
  if (absl::Status status = CheckUnused(name); !status.ok()) return status;
  deleted_versions_.insert(name);
  undo_.push_back([this, name] { deleted_versions_.erase(name); });
  writes_.deleted_versions.emplace_back(model, version);
  return absl::OkStatus();
}

absl::Status State::AddResource(ResourceKind kind, Resource resource) {
  const std::string name = ResourceName(kind, resource.id);
  if (!resources_.insert(name).second) return absl::AlreadyExistsError(name + " exists");
  undo_.push_back([this, name] { resources_.erase(name); });
  const std::string id = resource.id;
  writes_.resources.push_back({kind, id, std::move(resource)});
  return absl::OkStatus();
}

absl::Status State::CheckUnused(const std::string& name) const {
  const int64_t uses = jobs_.UsesOf(name);
  if (uses == 0) return absl::OkStatus();
  const std::string others = uses == 1 ? "" : absl::StrCat(" and ", uses - 1, uses == 2 ? " other job" : " other jobs");
  return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is used by jobs/", jobs_.AUserOf(name), others,
                                                               "; cancel or await what uses it first")),
                    "IN_USE");
}

absl::Status State::DeleteResource(ResourceKind kind, const std::string& id) {
  const std::string name = ResourceName(kind, id);
  if (resources_.count(name) == 0) return DoesNotExist(name);
  if (absl::Status status = CheckUnused(name); !status.ok()) return status;
  resources_.erase(name);
  undo_.push_back([this, name] { resources_.insert(name); });
  writes_.resources.push_back({kind, id, std::nullopt});
  return absl::OkStatus();
}

std::vector<std::string> State::Register(Node node, const std::vector<std::string>& attempts, absl::Time now) {
  node.ready = true;
  node.last_heartbeat = now;
  node.deadline = now + kLease;
  const std::string id = node.id;
  node.draining = drained_.count(id) > 0;
  // An agent that was started again says nothing about its machine.
  if (const auto before = nodes_.find(id); before != nodes_.end()) {
    node.losses = std::move(before->second.losses);
    node.quarantine_end = before->second.quarantine_end;
  }
  nodes_[id] = std::move(node);
  unsettled_ = true;
  std::vector<std::string> stale;
  std::set<std::string> held;
  for (const std::string& name : attempts) {
    const std::optional<AttemptId> attempt = ParseAttemptName(name);
    if (attempt && IsCurrent(*attempt) && Find(attempt->job)->node == id) {
      held.insert(attempt->job);
    } else {
      stale.push_back(name);
    }
  }
  const std::set<std::string> expected = jobs_.OnNode(id);
  for (const std::string& job_id : expected) {
    const Job& job = *Find(job_id);
    if (held.count(job_id) > 0) {
      if (IsStopping(job.state)) Send(Effect::Kind::kStop, job);  // the first order may never have arrived
    } else if (job.state == JobState::kStarting && job.last_report == 0) {
      Send(Effect::Kind::kStart, job);  // the first order may never have arrived
    } else {
      LoseAttempt(job, "the agent came back without it", /*crashed=*/false, now);
    }
  }
  return stale;
}

void State::Heartbeat(const std::string& id, std::string inventory, Processes processes, bool leaving, absl::Time now) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  Node& node = found->second;
  if (!node.ready && !node.leaving) {
    // Its lease ran out while the session stood still: what it runs is not current any more, and it has to hear of
    // that.
    effects_.push_back({.kind = Effect::Kind::kReconnect, .node = id});
    return;
  }
  node.leaving = leaving;
  node.ready = !leaving;
  node.last_heartbeat = now;
  node.deadline = now + kLease;
  if (!inventory.empty()) node.inventory = std::move(inventory);
  if (processes != node.processes) {
    node.processes = std::move(processes);
    unsettled_ = true;
  }
}

void State::Disconnect(const std::string& node, absl::Time now) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  found->second.ready = found->second.leaving = false;
  found->second.deadline = now + kLease;
}

bool State::Record(Report report, absl::Time now) {
  if (!IsCurrent(report.attempt)) return false;
  const Job* job = Find(report.attempt.job);
  if (report.sequence <= job->last_report) return true;  // sent again after a break
  job = &jobs_.Update(*job, [&](Job& j) {
    j.last_report = report.sequence;
    if (report.job_report) j.report = std::move(*report.job_report);
    if (report.time_left) j.expected_end = now + *report.time_left;
  });
  for (Event& event : report.events) {
    event.attempt = job->attempt;
    job = &AddEvent(*job, std::move(event), now);
  }
  if (report.checkpoint) {
    job = &jobs_.Update(*job, [&](Job& j) { j.stored_step = report.checkpoint->step; });
    writes_.checkpoints.push_back(
        {job->number, job->attempt, report.checkpoint->step, std::move(report.checkpoint->payload)});
  }
  if (!report.input) return true;
  if (const auto node = nodes_.find(job->node); node != nodes_.end() && SaysProcessEnded(*report.input)) {
    node->second.processes.erase(AttemptName(*job));
  }
  if (report.blames_node || (*report.input == JobInput::kAttemptLost && !IsStopping(job->state))) {
    Suspect(job->node, job->id, now);
  }
  if (*report.input == JobInput::kAttemptLost) {
    LoseAttempt(*job, report.message, report.crashed, now);
  } else if (*report.input == JobInput::kArtifactStored) {
    if (job->state == JobState::kPublishing) Publish(*job, std::move(report.version_payload), now);
  } else {
    Apply(*job, *report.input, report.message, now);
  }
  return true;
}

void State::Publish(const Job& job, std::string payload, absl::Time now) {
  Model& model = models_[job.model];
  undo_.push_back([this, name = job.model, before = model] { models_[name] = before; });
  model = {job.tenant, std::max(model.latest, epoch_ * kVersionsPerEpoch) + 1};
  ModelVersion version{.model = job.model,
                       .version = model.latest,
                       .job = job.id,
                       .tenant = job.tenant,
                       .attempt = job.attempt,
                       .base_model = job.base_model,
                       .create_time = now,
                       .payload = std::move(payload)};
  const std::string name = NameOfVersion(version.model, version.version);
  writes_.versions.push_back(std::move(version));
  jobs_.Update(job, [&](Job& j) { j.model_version = name; });
  AddEvent(job, Event{.attempt = job.attempt, .type = "published", .message = name}, now);
  Apply(job, JobInput::kArtifactStored, "published " + name, now);
}

void State::Suspect(const std::string& id, const std::string& job, absl::Time now) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  Node& node = found->second;
  undo_.push_back([this, id, losses = node.losses, end = node.quarantine_end] {
    nodes_[id].losses = losses;
    nodes_[id].quarantine_end = end;
  });
  for (auto loss = node.losses.begin(); loss != node.losses.end();) {
    loss = loss->second + kQuarantineWindow < now ? node.losses.erase(loss) : std::next(loss);
  }
  if (absl::c_any_of(node.losses, [&](const auto& loss) { return now < loss.second + kIncident; })) return;
  node.losses[job] = now;
  if (node.losses.size() < kQuarantineJobs || node.IsQuarantined()) return;
  // Where attempts die on most nodes, nodes are not the reason. A single one is quarantined all the same: else every
  // job of the queue would spend its retries there.
  const auto connected = absl::c_count_if(nodes_, [](const auto& other) { return other.second.ready; });
  const auto quarantined =
      absl::c_count_if(nodes_, [](const auto& other) { return other.second.ready && other.second.IsQuarantined(); });
  if (quarantined + 1 > std::max<int64_t>(1, connected / 2)) return;
  node.quarantine_end = now + kQuarantine;
  Quarantine quarantine{.node = id, .end = node.quarantine_end};
  for (const auto& [lost, time] : node.losses) quarantine.jobs.push_back(lost);
  writes_.quarantines.push_back(std::move(quarantine));
}

void State::LoseAttempt(const Job& job, const std::string& why, bool crashed, absl::Time now) {
  if (IsStopping(job.state)) {
    Apply(job, JobInput::kAttemptLost, why, now);
    return;
  }
  jobs_.Update(job, [&](Job& j) {
    ++j.lost_attempts;
    ++j.lost_here;
    if (crashed && !absl::c_linear_search(j.crashed_on, j.node)) j.crashed_on.push_back(j.node);
  });
  if (job.crashed_on.size() >= kMaxCrashNodes) {
    Apply(job, JobInput::kRetriesExhausted, absl::StrCat(why, "; ", CrashText(job), ", giving up"), now);
    return;
  }
  if (job.lost_attempts > kMaxLostAttempts) {
    Apply(job, JobInput::kRetriesExhausted, absl::StrCat(why, "; lost ", job.lost_attempts, " times, giving up"), now);
    return;
  }
  jobs_.Update(job, [&](Job& j) { j.not_before = now + RetryDelay(j.lost_attempts); });
  Apply(job, JobInput::kAttemptLost, absl::StrCat("attempt ", job.attempt, " lost: ", why), now);
}

void State::Preempt(const Job& job, const std::string& why, absl::Time now) {
  jobs_.Update(job, [](Job& j) { ++j.preemptions; });
  Apply(job, JobInput::kPreempted, why, now);
  Send(Effect::Kind::kStop, job);
}

void State::ClockJumped(absl::Duration by) {
  for (auto& [id, node] : nodes_) {
    node.deadline += by;
    node.quarantine_end += by;
    for (auto& [job, time] : node.losses) time += by;
  }
  next_lease_check_ = next_preemption_ = absl::InfinitePast();
  MoveDelays(jobs_, undo_, by);
}

void State::Tick(absl::Time now) {
  CancelOverdue(now);
  ExpireLeases(now);
  Schedule(now);
}

void State::CancelOverdue(absl::Time now) {
  while (const Job* job = jobs_.Overdue(now)) {
    (void)Ask(job->id, JobInput::kCancelRequested, {}, "its deadline is over", "", now);
  }
}

void State::ExpireLeases(absl::Time now) {
  if (now < next_lease_check_) return;
  next_lease_check_ = now + kLeaseCheck;
  for (auto& [id, node] : nodes_) {
    if (node.IsQuarantined() && node.quarantine_end <= now) {
      undo_.push_back([this, id = id, end = node.quarantine_end] { nodes_[id].quarantine_end = end; });
      node.quarantine_end = absl::InfinitePast();
      writes_.quarantines.push_back({.node = id});
      unsettled_ = true;
    }
    if (now < node.deadline) continue;
    node.ready = node.leaving = false;
    const std::set<std::string> lost = jobs_.OnNode(id);
    const std::string why = absl::StrCat("node ", id, " was not heard of for ", absl::FormatDuration(kLease));
    for (const std::string& job : lost) LoseAttempt(*Find(job), why, /*crashed=*/false, now);
  }
}

// When a running attempt may first be preempted is told by time alone.
bool State::LookForPreemption(absl::Time now) {
  next_preemption_ = absl::InfiniteFuture();
  const ServiceClass most_urgent = jobs_.queues().begin()->first.first;
  if (!jobs_.RunsLessUrgentThan(most_urgent)) return false;
  bool any = false;
  for (const auto& [id, node] : nodes_) {
    for (const std::string& job_id : jobs_.OnNode(id)) {
      const Job& job = *Find(job_id);
      if (job.service_class <= most_urgent || !NextState(job.state, JobInput::kPreempted)) continue;
      const absl::Time first = job.attempt_start + options_.preempt_after;
      any |= first <= now;
      if (first > now) next_preemption_ = std::min(next_preemption_, first);
    }
  }
  return any;
}

// 1. Is there anything to decide?  2. Is there any room?  3. What the policy says of the first of the queue.  4. Do it.
void State::Schedule(absl::Time now) {
  if (jobs_.EndDelays(now) || next_preemption_ <= now) unsettled_ = true;
  if (!unsettled_) return;
  unsettled_ = false;
  decisions_.reset();
  if (jobs_.queues().empty()) return;

  const bool preempts = LookForPreemption(now);
  const std::vector<NodeView> nodes = NodeViews(now);
  if (!preempts && absl::c_all_of(nodes, [](const NodeView& view) { return view.free.empty(); })) return;

  size_t started = 0, waiting = 0;
  std::vector<Decision> decisions = Decide(TakeSnapshot(now, kCandidates));
  decisions_.emplace();
  for (Decision& decision : decisions) {
    const int64_t number = decision.job->number;
    (decision.wait == Wait::kNone ? started : waiting) += 1;
    if (decision.wait == Wait::kNone) {
      Start(decision, now);
    } else {
      for (const Job* job : decision.preempted) {
        Preempt(*job, absl::StrCat("node ", decision.node, " is needed for a more urgent job"), now);
      }
      decisions_->emplace(number, std::move(decision));
    }
  }
  // There may be room for some of those behind: go on with the next batch.
  unsettled_ = started > 0 && started + waiting >= kCandidates;
}

Snapshot State::TakeSnapshot(absl::Time now, size_t candidates) const {
  Snapshot snapshot{.now = now, .nodes = NodeViews(now)};
  const size_t share = std::max<size_t>(1, candidates / std::max<size_t>(1, jobs_.queues().size()));
  std::map<int64_t, int> room;  // jobs that may start, of each sweep with a limit
  for (const auto& [key, queue] : jobs_.queues()) {
    const auto& [service_class, tenant] = key;
    std::vector<const Job*>& jobs = snapshot.waiting[static_cast<size_t>(service_class) - 1][tenant];
    size_t looks = 0;
    for (auto job = queue.begin(); job != queue.end() && jobs.size() < share && ++looks <= kLooks; ++job) {
      const int limit = (*job)->max_parallel;
      if (limit > 0 && room.try_emplace((*job)->sweep, limit - jobs_.RunningOf((*job)->sweep)).first->second-- <= 0)
        continue;
      jobs.push_back(*job);
    }
    TenantView& view = snapshot.tenants[tenant];
    view.running_devices = jobs_.LoadOf(tenant).running_devices;
    const auto known = tenants_.find(tenant);
    if (known == tenants_.end()) continue;
    view.usage = known->second.UsageAt(now);
    view.weight = known->second.weight;
    view.max_devices = known->second.max_devices;
  }
  return snapshot;
}

std::vector<NodeView> State::NodeViews(absl::Time now) const {
  std::vector<NodeView> views;
  for (const auto& [id, node] : nodes_) {
    if (!node.TakesWork()) continue;
    NodeView view{&node};
    std::set<int> held;
    for (const std::string& job_id : jobs_.OnNode(id)) {
      const Job& job = *Find(job_id);
      held.insert(job.held.begin(), job.held.end());
      const int devices = static_cast<int>(job.held.size());
      if (IsStopping(job.state)) {
        view.stopping += devices;
        continue;
      }
      const absl::Time end =
          job.expected_end != absl::InfiniteFuture() ? job.expected_end : job.attempt_start + ExpectedDuration(job);
      const bool preemptible =
          NextState(job.state, JobInput::kPreempted) && job.attempt_start + options_.preempt_after <= now;
      view.releases.push_back({end, devices, preemptible ? &job : nullptr});
    }
    // When a stale attempt ends nobody can say: a trainer may hang in its driver. So it releases nothing that could be
    // planned with.
    for (const auto& [attempt, devices] : node.processes) held.insert(devices.begin(), devices.end());
    for (int device = 0; device < node.devices; ++device) {
      if (held.count(device) == 0) view.free.push_back(device);
    }
    views.push_back(std::move(view));
  }
  return views;
}

WaitReason State::WhyItWaits(const Job& job, absl::Time now) {
  if (job.state == JobState::kHeld) return {Wait::kHeld, "created on hold; start it when it may run"};
  if (job.state == JobState::kPaused) return {Wait::kPaused, "paused; resume it when it may go on"};
  if (!IsWaiting(job.state)) return {};
  if (now < job.not_before) {
    return {Wait::kBackoff,
            absl::StrCat("attempt ", job.attempt, " was lost; the next one starts in ",
                         absl::ToInt64Seconds(absl::Ceil(job.not_before - now, absl::Seconds(1))), " s")};
  }
  if (job.max_parallel > 0 && jobs_.RunningOf(job.sweep) >= job.max_parallel) {
    return {Wait::kSweepLimit,
            absl::StrCat("its sweep runs ", job.max_parallel, job.max_parallel == 1 ? " job" : " jobs", " at a time")};
  }
  if (!decisions_) {
    decisions_.emplace();
    for (Decision& decision : Decide(TakeSnapshot(now, kCandidates))) {
      const int64_t number = decision.job->number;
      decisions_->emplace(number, std::move(decision));
    }
  }
  const auto decided = decisions_->find(job.number);
  if (decided == decisions_->end()) {
    return {Wait::kBehindOthers, absl::StrCat("others come first; ", jobs_.waiting(), " jobs wait in all")};
  }
  if (const Wait wait = decided->second.wait;
      wait == Wait::kNoNode || wait == Wait::kTooLarge || wait == Wait::kNoMatch) {
    if (const Node* node = QuarantinedNodeFor(job, nodes_)) {
      return {Wait::kQuarantined,
              absl::StrCat("node ", node->id, " is quarantined for another ",
                           absl::ToInt64Seconds(absl::Ceil(node->quarantine_end - now, absl::Seconds(1))),
                           " s, since attempts of several jobs died there; `luthier node undrain ", node->id,
                           "` ends that")};
    }
  }
  return {decided->second.wait, MessageOf(decided->second, nodes_)};
}

std::vector<Tenant> State::tenants() const {
  std::vector<Tenant> all;
  for (const auto& [id, tenant] : tenants_) all.push_back(tenant);
  return all;
}

Tenant State::TenantOf(const std::string& id) const {
  const auto found = tenants_.find(id);
  return found == tenants_.end() ? Tenant{.id = id} : found->second;
}

std::string State::SummaryOf(const std::string& id, absl::Time now) const {
  const Tenant tenant = TenantOf(id);
  const JobTable::Load load = jobs_.LoadOf(id);
  std::string text = absl::StrCat("tenant ", id, " uses ", load.running_devices,
                                  tenant.max_devices > 0 ? absl::StrCat(" of ", tenant.max_devices) : "",
                                  " devices and has ", load.waiting, " jobs waiting; ");
  absl::StrAppend(&text, "it used ", static_cast<int64_t>(tenant.UsageAt(now) / 3600),
                  " device-hours lately, with weight ", tenant.weight);
  return text;
}

void State::Start(const Decision& decision, absl::Time now) {
  const Job& job = jobs_.Update(*decision.job, [&](Job& j) {
    j.attempt = std::max(j.attempt, epoch_ * kAttemptsPerEpoch) + 1;
    j.last_report = 0;
    if (j.node != decision.node) j.lost_here = 0;
    j.node = decision.node;
    j.held = decision.devices;
    j.not_before = absl::InfinitePast();
    j.attempt_start = now;
    j.expected_end = absl::InfiniteFuture();
    if (j.start_time == absl::InfinitePast()) j.start_time = now;
  });
  // Now rather than at the end: a tenant that has used little must not take every node in one cycle.
  Charge(job.tenant, absl::ToDoubleSeconds(ExpectedDuration(job)) * static_cast<double>(job.held.size()), now);
  Apply(job, JobInput::kPlaced, absl::StrCat("attempt ", job.attempt, " on node ", decision.node), now);
  Send(Effect::Kind::kStart, job);
}

const Job& State::Apply(const Job& job, JobInput input, const std::string& message, absl::Time now) {
  const std::optional<JobState> next = NextState(job.state, input);
  if (!next) return job;
  if (input == JobInput::kTrainerFinished) {
    if (const auto node = nodes_.find(job.node); node != nodes_.end()) node->second.losses.clear();
  }
  if (HoldsDevices(job.state) && !HoldsDevices(*next)) {
    // What was charged at the start was an estimate.
    const absl::Duration over = (now - job.attempt_start) - ExpectedDuration(job);
    Charge(job.tenant, absl::ToDoubleSeconds(over) * static_cast<double>(job.held.size()), now);
    unsettled_ = true;
  }
  if (IsWaiting(*next)) unsettled_ = true;
  if (IsTerminal(*next) && job.stored_step > 0)
    writes_.checkpoints.push_back({job.number, job.attempt, job.stored_step, std::nullopt});
  jobs_.Update(job, [&](Job& j) {
    j.state = *next;
    if (IsTerminal(*next)) j.stored_step = 0;
    if (!HoldsDevices(*next)) j.held.clear();
    if (IsWaiting(*next)) j.waiting_since = now;
    if (IsTerminal(*next)) j.end_time = now;
  });
  Event event{.attempt = job.attempt, .type = "state", .message = message, .state = static_cast<int>(*next)};
  return AddEvent(job, std::move(event), now);
}

const Job& State::AddEvent(const Job& job, Event event, absl::Time now) {
  event.job = job.number;
  event.sequence = job.last_event + 1;
  event.time = now;
  writes_.events.push_back(std::move(event));
  return jobs_.Update(job, [](Job& j) { ++j.last_event; });
}

void State::Send(Effect::Kind kind, const Job& job) {
  Effect effect{kind, job.node, AttemptName(job), job.number, {}};
  effect.job_goes_on = kind == Effect::Kind::kStop && job.state != JobState::kCancelling;
  if (const auto node = nodes_.find(job.node); node != nodes_.end() && (node->second.gpus || node->second.shares > 1))
    effect.devices = job.held;
  effects_.push_back(std::move(effect));
}

Writes State::TakeWrites() {
  Writes writes = std::exchange(writes_, {});
  for (const Job* job : jobs_.Changed()) writes.jobs.push_back(*job);
  for (const std::string& tenant : std::exchange(changed_tenants_, {})) writes.tenants.push_back(tenants_.at(tenant));
  return writes;
}

void State::Commit() {
  jobs_.Commit();
  fresh_requests_.clear();
  undo_.clear();
}

void State::Rollback() {
  jobs_.Rollback();
  const std::vector<std::function<void()>> undo = std::exchange(undo_, {});  // a step may leave one for the next batch
  for (auto step = undo.rbegin(); step != undo.rend(); ++step) (*step)();
  fresh_requests_.clear();
  writes_ = {};
  effects_.clear();
  changed_tenants_.clear();
  decisions_.reset();
  unsettled_ = true;
}

}  // namespace luthier
