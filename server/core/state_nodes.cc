// Nodes, the attempts that they hold and what these report: sessions, leases, drains, quarantines and lost attempts.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "server/core/reason.h"
#include "server/core/state.h"

namespace luthier {
namespace {

// Walking all nodes more often would find leases that ran out no sooner than anybody notices.
constexpr absl::Duration kLeaseCheck = absl::Milliseconds(250);
// Enough to spread jobs over seconds that were lost together; the pause stays what it is for.
constexpr double kJitter = 0.25;

// From 0 to 1, the same for the same seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
double Draw(uint64_t seed) {
  uint64_t z = seed + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

}  // namespace

absl::Duration RetryDelay(int lost) {
  if (lost <= 1) return absl::Seconds(1);
  return std::min(absl::Minutes(10), absl::Seconds(10) * (1 << std::min(lost - 2, 10)));
}

absl::Duration RetryDelayOf(const Job& job) {
  const double draw = Draw(static_cast<uint64_t>(job.number) << 20 ^ static_cast<uint64_t>(job.attempt));
  return RetryDelay(job.lost_attempts) * (1 - kJitter * draw);
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

// The lease goes on from when the agent was heard last. One that hangs is noticed by pings about when its lease ends:
// with another lease from then on it would keep a job from going on elsewhere for twice as long.
void State::Disconnect(const std::string& node) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  found->second.ready = found->second.leaving = false;
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

bool State::IsCurrent(const AttemptId& attempt) const {
  const Job* job = Find(attempt.job);
  return job != nullptr && HoldsDevices(job->state) && job->attempt == attempt.attempt;
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
    CountStored(job->tenant, report.checkpoint->bytes - job->stored_bytes);
    job = &jobs_.Update(*job, [&](Job& j) {
      j.stored_step = report.checkpoint->step;
      j.stored_bytes = report.checkpoint->bytes;
    });
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
    if (job->state == JobState::kPublishing) Publish(*job, std::move(report), now);
  } else {
    Apply(*job, *report.input, report.message, now);
  }
  return true;
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
  jobs_.Update(job, [&](Job& j) { j.not_before = now + RetryDelayOf(j); });
  Apply(job, JobInput::kAttemptLost, absl::StrCat("attempt ", job.attempt, " lost: ", why), now);
}

void State::Preempt(const Job& job, const std::string& why, absl::Time now) {
  jobs_.Update(job, [](Job& j) { ++j.preemptions; });
  Apply(job, JobInput::kPreempted, why, now);
  Send(Effect::Kind::kStop, job);
}

}  // namespace luthier
