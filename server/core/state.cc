#include "server/core/state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

// Walking all nodes more often would find leases that ran out no sooner than anybody notices.
constexpr absl::Duration kLeaseCheck = absl::Milliseconds(250);
// A head of the queue that fits nowhere must not make every cycle walk through a million jobs behind it.
constexpr size_t kCandidates = 500;

absl::Status NotFound(absl::string_view name) { return absl::NotFoundError(absl::StrCat(name, " does not exist")); }

}  // namespace

absl::Status JobExists(const std::string& id) {
  return WithReason(absl::AlreadyExistsError(absl::StrCat("job_id: jobs/", id, " exists; choose another one")), "JOB_ID_TAKEN");
}

absl::Duration RetryDelay(int lost) {
  if (lost <= 1) return absl::Seconds(1);
  return std::min(absl::Minutes(10), absl::Seconds(10) * (1 << std::min(lost - 2, 10)));
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

void State::LoadJob(Job job, absl::Time now) {
  if (HoldsDevices(job.state)) {
    Node& node = nodes_[job.node];
    node.id = job.node;
    node.deadline = now + kLease;
  }
  job.waiting_since = job.attempt == 0 ? job.create_time : now;
  last_number_ = std::max(last_number_, job.number);
  jobs_.Load(std::move(job));
}

bool State::IsCurrent(const AttemptId& attempt) const {
  const Job* job = Find(attempt.job);
  return job != nullptr && HoldsDevices(job->state) && job->attempt == attempt.attempt;
}

absl::Status State::Create(Job& job, const JobRequest& request, std::string spec, absl::Time now) {
  if (const auto found = fresh_requests_.find(request.id); !request.id.empty() && found != fresh_requests_.end()) {
    const auto& [first, id] = found->second;
    if (absl::Status status = CheckReplay(request, first, id); !status.ok()) return status;
    job = *Find(id);
    return absl::OkStatus();
  }
  if (Find(job.id) != nullptr) {
    return JobExists(job.id);
  }
  if (jobs_.size() >= options_.max_live_jobs) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat("the queue holds ", jobs_.size(), " jobs; try again later")),
                      "QUEUE_FULL");
  }
  for (const std::string& name : ResourcesOf(job)) {
    if (resources_.count(name) == 0) return NotFound(name);
  }
  job.number = ++last_number_;
  job.create_time = job.waiting_since = now;
  if (job.model.empty()) job.model = job.id;
  if (!request.id.empty()) fresh_requests_[request.id] = {request, job.id};
  writes_.new_jobs.push_back({job.number, request, std::move(spec)});
  Event event{.type = "state", .message = "queued", .state = static_cast<int>(JobState::kQueued)};
  job = AddEvent(jobs_.Insert(job), std::move(event), now);
  unsettled_ = true;
  return absl::OkStatus();
}

absl::Status State::Cancel(const std::string& id, absl::Time now) {
  const Job* job = Find(id);
  if (job == nullptr) return NotFound("jobs/" + id);
  if (job->state == JobState::kCancelling || IsTerminal(job->state)) return absl::OkStatus();
  job = &Apply(*job, JobInput::kCancelRequested, "cancelled by a user", now);
  if (job->state == JobState::kCancelling) Send(Effect::Kind::kStop, *job);
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

absl::Status State::DeleteResource(ResourceKind kind, const std::string& id) {
  const std::string name = ResourceName(kind, id);
  if (resources_.count(name) == 0) return NotFound(name);
  if (const int64_t uses = jobs_.UsesOf(name); uses > 0) {
    const std::string others = uses == 1 ? "" : absl::StrCat(" and ", uses - 1, uses == 2 ? " other job" : " other jobs");
    return WithReason(absl::FailedPreconditionError(absl::StrCat(name, " is used by jobs/", jobs_.AUserOf(name), others,
                                                                 "; cancel or await what uses it first")),
                      "IN_USE");
  }
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
      if (job.state == JobState::kCancelling) Send(Effect::Kind::kStop, job);
    } else if (job.state == JobState::kStarting && job.last_report == 0) {
      Send(Effect::Kind::kStart, job);  // the first order may never have arrived
    } else {
      LoseAttempt(job, "the agent came back without it", now);
    }
  }
  return stale;
}

void State::Heartbeat(const std::string& id, std::string inventory, bool leaving, absl::Time now) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  Node& node = found->second;
  if (!node.ready && !node.leaving) {
    // Its lease ran out while the session stood still: what it runs is not current any more, and it has to hear of that.
    effects_.push_back({.kind = Effect::Kind::kReconnect, .node = id});
    return;
  }
  node.leaving = leaving;
  node.ready = !leaving;
  node.last_heartbeat = now;
  node.deadline = now + kLease;
  if (!inventory.empty()) node.inventory = std::move(inventory);
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
  });
  for (Event& event : report.events) {
    event.attempt = job->attempt;
    job = &AddEvent(*job, std::move(event), now);
  }
  if (!report.input) return true;
  if (*report.input == JobInput::kAttemptLost) {
    LoseAttempt(*job, report.message, now);
  } else if (*report.input == JobInput::kArtifactStored) {
    if (job->state == JobState::kPublishing) Publish(*job, std::move(report.version_payload), now);
  } else {
    Apply(*job, *report.input, report.message, now);
  }
  return true;
}

void State::Publish(const Job& job, std::string payload, absl::Time now) {
  int& latest = latest_[job.model];
  undo_.push_back([this, model = job.model, before = latest] { latest_[model] = before; });
  ModelVersion version{.model = job.model, .version = ++latest, .job = job.id, .attempt = job.attempt,
                       .base_model = job.base_model, .create_time = now, .payload = std::move(payload)};
  const std::string name = absl::StrCat("models/", version.model, "/versions/", version.version);
  writes_.versions.push_back(std::move(version));
  jobs_.Update(job, [&](Job& j) { j.model_version = name; });
  AddEvent(job, Event{.attempt = job.attempt, .type = "published", .message = name}, now);
  Apply(job, JobInput::kArtifactStored, "published " + name, now);
}

void State::LoseAttempt(const Job& job, const std::string& why, absl::Time now) {
  if (job.state == JobState::kCancelling) {
    Apply(job, JobInput::kAttemptLost, why, now);
    return;
  }
  jobs_.Update(job, [&](Job& j) { ++j.lost_attempts; });
  if (job.lost_attempts > kMaxLostAttempts) {
    Apply(job, JobInput::kRetriesExhausted, absl::StrCat(why, "; lost ", job.lost_attempts, " times, giving up"), now);
    return;
  }
  jobs_.Update(job, [&](Job& j) { j.not_before = now + RetryDelay(j.lost_attempts); });
  Apply(job, JobInput::kAttemptLost, absl::StrCat("attempt ", job.attempt, " lost: ", why), now);
}

void State::ClockJumped(absl::Duration by) {
  for (auto& [id, node] : nodes_) node.deadline += by;
  next_lease_check_ = absl::InfinitePast();
  for (const Job* job : jobs_.Delayed()) {
    jobs_.Update(*job, [&](Job& j) { j.not_before += by; });
  }
}

void State::Tick(absl::Time now) {
  ExpireLeases(now);
  Schedule(now);
}

void State::ExpireLeases(absl::Time now) {
  if (now < next_lease_check_) return;
  next_lease_check_ = now + kLeaseCheck;
  for (auto& [id, node] : nodes_) {
    if (now < node.deadline) continue;
    node.ready = node.leaving = false;
    const std::set<std::string> lost = jobs_.OnNode(id);
    for (const std::string& job : lost) {
      LoseAttempt(*Find(job), absl::StrCat("node ", id, " was not heard of for ", absl::FormatDuration(kLease)), now);
    }
  }
}

void State::Schedule(absl::Time now) {
  const size_t before = jobs_.queue_size();
  const JobTable::Queue& queue = jobs_.QueueAt(now);
  if (queue.empty() || (!unsettled_ && queue.size() == before)) return;
  unsettled_ = false;
  std::vector<NodeView> nodes = NodeViews();
  const bool full = std::all_of(nodes.begin(), nodes.end(), [](const NodeView& view) { return view.free.empty(); });
  if (full) return;
  std::vector<const Job*> candidates;
  for (auto job = queue.begin(); job != queue.end() && candidates.size() < kCandidates; ++job) candidates.push_back(*job);
  const std::vector<Placement> placements = Place(candidates, std::move(nodes));
  for (const Placement& placement : placements) Start(placement, now);
  // There may be room for some of those behind: go on with the next batch.
  unsettled_ = !placements.empty() && candidates.size() == kCandidates;
}

std::vector<NodeView> State::NodeViews() const {
  std::vector<NodeView> views;
  for (const auto& [id, node] : nodes_) {
    if (!node.ready) continue;
    NodeView view{&node, {}};
    std::set<int> held;
    for (const std::string& job : jobs_.OnNode(id)) held.insert(Find(job)->held.begin(), Find(job)->held.end());
    for (int device = 0; device < node.devices; ++device) {
      if (held.count(device) == 0) view.free.push_back(device);
    }
    views.push_back(std::move(view));
  }
  return views;
}

std::string State::WhyItWaits(const Job& job, absl::Time now) const {
  if (!IsWaiting(job.state)) return "";
  if (now < job.not_before) {
    return absl::StrCat("attempt ", job.attempt, " was lost; the next one starts in ",
                        absl::ToInt64Seconds(absl::Ceil(job.not_before - now, absl::Seconds(1))), " s");
  }
  return WhyNoNodeFits(job, NodeViews());
}

void State::Start(const Placement& placement, absl::Time now) {
  const Job& job = jobs_.Update(*placement.job, [&](Job& j) {
    ++j.attempt;
    j.last_report = 0;
    j.node = placement.node;
    j.held = placement.devices;
    j.not_before = absl::InfinitePast();
    if (j.start_time == absl::InfinitePast()) j.start_time = now;
  });
  Apply(job, JobInput::kPlaced, absl::StrCat("attempt ", job.attempt, " on node ", placement.node), now);
  Send(Effect::Kind::kStart, job);
}

const Job& State::Apply(const Job& job, JobInput input, const std::string& message, absl::Time now) {
  const std::optional<JobState> next = NextState(job.state, input);
  if (!next) return job;
  if (HoldsDevices(job.state) && !HoldsDevices(*next)) unsettled_ = true;
  jobs_.Update(job, [&](Job& j) {
    j.state = *next;
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
  if (const auto node = nodes_.find(job.node); node != nodes_.end() && node->second.gpus) effect.devices = job.held;
  effects_.push_back(std::move(effect));
}

Writes State::TakeWrites() {
  Writes writes = std::exchange(writes_, {});
  for (const Job* job : jobs_.Changed()) writes.jobs.push_back(*job);
  return writes;
}

void State::Commit() {
  jobs_.Commit();
  fresh_requests_.clear();
  undo_.clear();
}

void State::Rollback() {
  for (auto step = undo_.rbegin(); step != undo_.rend(); ++step) (*step)();
  undo_.clear();
  jobs_.Rollback();
  fresh_requests_.clear();
  writes_ = {};
  effects_.clear();
  unsettled_ = true;
}

}  // namespace luthier
