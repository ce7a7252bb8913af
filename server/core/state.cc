#include "server/core/state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {

absl::Duration RetryDelay(int lost) {
  if (lost <= 1) return absl::Seconds(1);
  return std::min(absl::Minutes(10), absl::Seconds(10) * (1 << std::min(lost - 2, 10)));
}

void State::LoadJob(Job job, absl::Time now) {
  if (!job.request_id.empty()) by_request_[job.request_id] = job.id;
  if (!IsTerminal(job.state)) active_.insert(job.id);
  if (HoldsDevices(job.state)) {
    Node& node = nodes_[job.node];
    node.id = job.node;
    node.deadline = now + kLease;
    // Which devices it holds is not stored: until its agent registers, the node takes no other job anyway.
    std::vector<int>& devices = devices_[job.id];
    for (int device = 0; static_cast<int>(devices.size()) < job.devices; ++device) devices.push_back(device);
  }
  jobs_[job.id] = std::move(job);
}

void State::AdoptNodes(const State& other, absl::Time now) {
  nodes_ = other.nodes_;
  devices_ = other.devices_;
  for (auto& [id, node] : nodes_) node.deadline = std::max(node.deadline, now + kLease);
}

const Job* State::Find(const std::string& id) const {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : &found->second;
}

bool State::IsCurrent(const AttemptId& attempt) const {
  const Job* job = Find(attempt.job);
  return job != nullptr && HoldsDevices(job->state) && job->attempt == attempt.attempt;
}

absl::Status State::Create(Job& job, std::string spec, absl::Time now) {
  if (const auto found = by_request_.find(job.request_id); !job.request_id.empty() && found != by_request_.end()) {
    const Job& first = jobs_.at(found->second);
    if (first.body_sha256 != job.body_sha256) {
      return absl::AlreadyExistsError(absl::StrCat("request_id: ", job.request_id, " was used for jobs/", first.id,
                                                   " with another body; choose a new one"));
    }
    job = first;
    return absl::OkStatus();
  }
  if (jobs_.count(job.id) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("job_id: jobs/", job.id, " exists; choose another one"));
  }
  if (active_.size() >= kMaxWaitingJobs) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue holds ", active_.size(), " jobs; try again later"));
  }
  job.create_time = now;
  if (!job.request_id.empty()) by_request_[job.request_id] = job.id;
  active_.insert(job.id);
  writes_.specs[job.id] = std::move(spec);
  Job& stored = jobs_[job.id] = job;
  Event event{.type = "state", .message = "queued", .state = static_cast<int>(JobState::kQueued)};
  AddEvent(stored, std::move(event), now);
  Tick(now);
  job = stored;
  return absl::OkStatus();
}

absl::Status State::Cancel(const std::string& id, absl::Time now) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return absl::NotFoundError(absl::StrCat("jobs/", id, " does not exist"));
  Job& job = found->second;
  if (job.state == JobState::kCancelling || job.state == JobState::kCancelled) return absl::OkStatus();
  if (IsTerminal(job.state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("jobs/", id, " is ", StateName(job.state), "; only a job that is not over can be cancelled"));
  }
  Apply(job, JobInput::kCancelRequested, "cancelled by a user", now);
  if (job.state == JobState::kCancelling) Send(Effect::Kind::kStop, job);
  return absl::OkStatus();
}

std::vector<std::string> State::Register(Node node, const std::vector<std::string>& attempts, absl::Time now) {
  node.ready = true;
  node.last_heartbeat = now;
  node.deadline = now + kLease;
  const std::string id = node.id;
  nodes_[id] = std::move(node);
  std::vector<std::string> stale;
  std::set<std::string> held;
  for (const std::string& name : attempts) {
    const std::optional<AttemptId> attempt = ParseAttemptName(name);
    if (attempt && IsCurrent(*attempt) && jobs_.at(attempt->job).node == id) {
      held.insert(attempt->job);
    } else {
      stale.push_back(name);
    }
  }
  const std::set<std::string> active = active_;
  for (const std::string& job_id : active) {
    Job& job = jobs_.at(job_id);
    if (job.node != id || !HoldsDevices(job.state)) continue;
    if (held.count(job_id) > 0) {
      if (job.state == JobState::kCancelling) Send(Effect::Kind::kStop, job);
    } else if (job.state == JobState::kStarting && job.last_report == 0) {
      Send(Effect::Kind::kStart, job);  // the first order may never have arrived
    } else {
      LoseAttempt(job, "the agent came back without it", now);
    }
  }
  Tick(now);
  return stale;
}

bool State::Heartbeat(const std::string& node, const std::string& inventory, absl::Time now) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end() || !found->second.ready) return false;
  found->second.last_heartbeat = now;
  found->second.deadline = now + kLease;
  if (!inventory.empty()) found->second.inventory = inventory;
  return true;
}

void State::Disconnect(const std::string& node, absl::Time now) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  found->second.ready = false;
  found->second.deadline = now + kLease;
}

bool State::Record(Report report, absl::Time now) {
  const auto found = jobs_.find(report.attempt.job);
  if (found == jobs_.end() || found->second.attempt != report.attempt.attempt) return false;
  Job& job = found->second;
  if (!HoldsDevices(job.state)) return IsTerminal(job.state);
  if (report.sequence <= job.last_report) return true;  // sent again after a break
  job.last_report = report.sequence;
  writes_.jobs.insert(job.id);
  if (report.job_report) job.report = std::move(*report.job_report);
  for (Event& event : report.events) {
    event.attempt = job.attempt;
    AddEvent(job, std::move(event), now);
  }
  if (!report.input) return true;
  if (*report.input == JobInput::kAttemptLost) {
    LoseAttempt(job, report.message, now);
  } else if (*report.input == JobInput::kArtifactStored) {
    if (job.state == JobState::kPublishing) Publish(job, std::move(report.version_payload), now);
  } else {
    Apply(job, *report.input, report.message, now);
  }
  if (!HoldsDevices(job.state)) Tick(now);
  return true;
}

void State::Publish(Job& job, std::string payload, absl::Time now) {
  ModelVersion version{.model = job.id, .version = ++latest_[job.id], .job = job.id, .attempt = job.attempt,
                       .base_model = job.base_model, .create_time = now, .payload = std::move(payload)};
  job.model_version = absl::StrCat("models/", version.model, "/versions/", version.version);
  writes_.versions.push_back(std::move(version));
  AddEvent(job, Event{.attempt = job.attempt, .type = "published", .message = job.model_version}, now);
  Apply(job, JobInput::kArtifactStored, "published " + job.model_version, now);
}

void State::LoseAttempt(Job& job, const std::string& why, absl::Time now) {
  if (job.state != JobState::kCancelling) ++job.lost_attempts;
  if (job.lost_attempts > kMaxLostAttempts) {
    Apply(job, JobInput::kRetriesExhausted, absl::StrCat(why, "; lost ", job.lost_attempts, " times, giving up"), now);
    return;
  }
  job.not_before = now + RetryDelay(job.lost_attempts);
  Apply(job, JobInput::kAttemptLost, absl::StrCat("attempt ", job.attempt, " lost: ", why), now);
}

void State::Tick(absl::Time now) {
  const std::set<std::string> active = active_;
  for (const std::string& id : active) {
    Job& job = jobs_.at(id);
    if (!HoldsDevices(job.state) || now < nodes_[job.node].deadline) continue;
    nodes_[job.node].ready = false;
    LoseAttempt(job, absl::StrCat("node ", job.node, " was not heard of for ", absl::FormatDuration(kLease)), now);
  }
  for (auto& [id, node] : nodes_) {
    if (now >= node.deadline) node.ready = false;
  }
  std::vector<const Job*> waiting;
  std::map<std::string, std::set<int>> busy;
  for (const std::string& id : active_) {
    const Job& job = jobs_.at(id);
    if (IsWaiting(job.state)) waiting.push_back(&job);
    if (HoldsDevices(job.state)) busy[job.node].insert(devices_[id].begin(), devices_[id].end());
  }
  std::sort(waiting.begin(), waiting.end(), [](const Job* a, const Job* b) {
    return std::tie(a->create_time, a->id) < std::tie(b->create_time, b->id);
  });
  for (Placement& placement : Place(waiting, nodes_, busy, now)) {
    Job& job = jobs_.at(placement.job);
    job.pending_reason = placement.reason;
    if (!placement.node.empty()) Start(job, placement.node, std::move(placement.devices), now);
  }
}

void State::Start(Job& job, const std::string& node, std::vector<int> devices, absl::Time now) {
  ++job.attempt;
  job.last_report = 0;
  job.node = node;
  devices_[job.id] = std::move(devices);
  if (job.start_time == absl::InfinitePast()) job.start_time = now;
  Apply(job, JobInput::kPlaced, absl::StrCat("attempt ", job.attempt, " on node ", node), now);
  Send(Effect::Kind::kStart, job);
}

void State::Apply(Job& job, JobInput input, const std::string& message, absl::Time now) {
  const std::optional<JobState> next = NextState(job.state, input);
  if (!next) return;
  job.state = *next;
  if (!HoldsDevices(job.state)) devices_.erase(job.id);
  if (IsTerminal(job.state)) {
    job.end_time = now;
    job.pending_reason.clear();
    active_.erase(job.id);
  }
  Event event{.attempt = job.attempt, .type = "state", .message = message, .state = static_cast<int>(job.state)};
  AddEvent(job, std::move(event), now);
}

void State::AddEvent(Job& job, Event event, absl::Time now) {
  event.job = job.id;
  event.sequence = ++job.last_event;
  event.time = now;
  writes_.events.push_back(std::move(event));
  writes_.jobs.insert(job.id);
}

void State::Send(Effect::Kind kind, const Job& job) {
  Effect effect{kind, job.node, AttemptName(job), {}};
  if (nodes_[job.node].gpus) effect.devices = devices_[job.id];
  effects_.push_back(std::move(effect));
}

}  // namespace luthier
