// Nodes, the attempts that they hold and what these report: sessions, leases, drains, quarantines and lost attempts.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <tuple>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "server/core/reason.h"
#include "server/core/state.h"

namespace luthier {
namespace {

// Walking all nodes more often would find leases that ran out no sooner than anybody notices.
constexpr absl::Duration kLeaseCheck = absl::Milliseconds(250);
// A node that is avoided for nothing costs little, since only others come first; a firewall costs every job five
// minutes.
constexpr absl::Duration kMissedFor = absl::Hours(24);
// Enough to spread jobs over seconds that were lost together; the pause stays what it is for.
constexpr double kJitter = 0.25;

// From 0 to 1, the same for the same seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
double Draw(uint64_t seed) {
  uint64_t z = seed + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

// Requires: a part of the current attempt is on the node.
int RankOf(const Job& job, const std::string& node) {
  const std::vector<Place> places = PlacesOf(job);
  return static_cast<int>(absl::c_find_if(places, [&](const Place& place) { return place.node == node; }) -
                          places.begin());
}

// The nodes of which one does not reach another, for all that is known. The leading one had reached the others when
// they trained, and is to be spared with its checkpoints.
std::vector<std::string> WhereRanksLostEachOther(const Job& job) {
  std::vector<std::string> nodes;
  if (job.state == JobState::kStarting) nodes.push_back(job.node);
  for (const Place& place : job.others) nodes.push_back(place.node);
  return nodes;
}

// Whether an attempt that ended so makes the node suspect on which it did.
bool IsNodesFault(const Report& report, const Job& job) {
  return report.input == JobInput::kAttemptLost && !report.lost_peer && !IsStopping(job.state);
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
  bool moved = false;
  // An agent that was started again says nothing about its machine.
  if (const auto before = nodes_.find(id); before != nodes_.end()) {
    moved = !before->second.gang_address.empty() && std::tie(before->second.gang_address, before->second.gang_port) !=
                                                        std::tie(node.gang_address, node.gang_port);
    if (moved) ForgetMissed(id);
    node.missed = std::move(before->second.missed);
    node.losses = std::move(before->second.losses);
    node.quarantine_end = before->second.quarantine_end;
  }
  nodes_[id] = std::move(node);
  unsettled_ = true;
  std::vector<std::string> stale;
  std::set<std::string> held;
  const std::set<std::string> expected = jobs_.OnNode(id);
  for (const std::string& name : attempts) {
    const std::optional<AttemptId> attempt = ParseAttemptName(name);
    if (attempt && IsCurrent(*attempt) && expected.count(attempt->job) > 0) {
      held.insert(attempt->job);
    } else {
      stale.push_back(name);
    }
  }
  for (const std::string& job_id : expected) GoOnWith(*Find(job_id), id, held.count(job_id) > 0, moved, now);
  return stale;
}

// Orders that were sent before may never have arrived. Where it leads and waits at another address than those which
// arrived say, the other nodes would look for it in vain.
void State::GoOnWith(const Job& job, const std::string& id, bool has_it, bool moved, absl::Time now) {
  const int rank = RankOf(job, id);
  const bool is_reached = job.nodes == 1 || (!nodes_.at(id).gang_address.empty() && (rank > 0 || !moved));
  const bool can_start = job.state == JobState::kStarting && (rank > 0 || job.last_report == 0) && is_reached &&
                         !nodes_.at(id).outdated;  // which gets no new orders
  if (!has_it && !can_start) {
    return LoseAttemptOn(id, job, absl::StrCat("the agent of node ", id, " came back without it"), now);
  }
  if (IsStopping(job.state)) SendTo(rank, Effect::Kind::kStop, job);
  if (job.state != JobState::kStarting) return;
  if (!has_it) SendTo(rank, Effect::Kind::kStart, job);
  // Those that came back before the leading node could not be told where it waits; the others have the order already.
  for (int other = 1; rank == 0 && other < job.nodes; ++other) SendTo(other, Effect::Kind::kStart, job);
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
  if (node.leaving != leaving) unsettled_ = true;
  node.leaving = leaving;
  node.ready = !leaving;
  node.last_heartbeat = now;
  node.deadline = now + kLease;
  if (!inventory.empty()) node.inventory = std::move(inventory);
  // It may have been on its way when the order to start arrived. So it frees what is left of an attempt only if one
  // before it named the attempt, or if that was told to stop so long ago that the order has arrived.
  const size_t freed = std::erase_if(node.leftovers, [&](const auto& leftover) {
    const auto& [attempt, left] = leftover;
    return processes.count(attempt) == 0 && (node.processes.count(attempt) > 0 || now >= left.since + kLease);
  });
  if (freed > 0) unsettled_ = true;
  if (processes != node.processes) {
    node.processes = std::move(processes);
    unsettled_ = true;
  }
  if (leaving) StopWhatOthersLead(id, now);
}

// What it leads its agent stops by itself. Of the rest it can only end its part: the leading node has to make a
// checkpoint before that.
void State::StopWhatOthersLead(const std::string& id, absl::Time now) {
  const std::set<std::string> attempts = jobs_.OnNode(id);
  for (const std::string& job_id : attempts) {
    const Job& job = *Find(job_id);
    if (job.node != id && NextState(job.state, JobInput::kPreempted))
      Preempt(job, absl::StrCat("the agent of node ", id, " leaves"), now);
  }
}

// The lease goes on from when the agent was heard last. One that hangs is noticed by pings about when its lease ends:
// with another lease from then on it would keep a job from going on elsewhere for twice as long.
void State::Disconnect(const std::string& node) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  found->second.ready = found->second.leaving = false;
  unsettled_ = true;  // what waits hears another reason
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
    std::erase_if(node.missed, [&](const auto& missed) { return missed.second.end <= now; });
    if (now < node.deadline) continue;
    if (node.ready || node.leaving) unsettled_ = true;
    node.ready = node.leaving = false;
    const std::set<std::string> lost = jobs_.OnNode(id);
    const std::string why = absl::StrCat("node ", id, " was not heard of for ", absl::FormatDuration(kLease));
    for (const std::string& job : lost) LoseAttemptOn(id, *Find(job), why, now);
  }
}

absl::Status State::Drain(const std::string& id, bool requeue, absl::Time now) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return drained_.count(id) > 0 ? absl::OkStatus() : DoesNotExist("nodes/" + id);
  node->second.draining = true;
  undo_.push_back([this, id, before = drained_.count(id) > 0] {
    if (!before) drained_.erase(id);
    nodes_[id].draining = before;
  });
  drained_.insert(id);
  writes_.drained.emplace_back(id, true);
  unsettled_ = true;  // what waits hears another reason
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
    ForgetMissed(id);
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

void State::LoseOrder(const AttemptId& attempt, const std::string& node, const std::string& why, absl::Time now) {
  // An order is sent again to a node that may have it: what has started needs none.
  if (!IsCurrent(attempt) || Find(attempt.job)->state != JobState::kStarting) return;
  const Job& job = *Find(attempt.job);
  const std::vector<int>* held = HeldOn(job, node);
  if (held == nullptr) return;
  if (node != job.node) StopRest(job, {node, *held}, now);
  LoseAttemptOn(node, job, Loss{.why = why}, now);
}

bool State::Record(Report report, absl::Time now) {
  if (!IsCurrent(report.attempt)) {
    if (report.input && SaysProcessEnded(*report.input)) ForgetProcess(report.node, AttemptName(report.attempt));
    return false;
  }
  const Job* job = Find(report.attempt.job);
  if (!report.node.empty() && report.node != job->node) return RecordOfOther(*job, report, now);
  if (report.sequence <= job->last_report) return true;  // sent again after a break
  job = &jobs_.Update(*job, [&](Job& j) {
    j.last_report = report.sequence;
    if (report.job_report) j.report = std::move(*report.job_report);
    if (report.time_left) j.expected_end = now + *report.time_left;
  });
  if (report.tokens_per_second) ObserveSpeed(*job, *report.tokens_per_second, now);
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
  if (SaysProcessEnded(*report.input)) ForgetProcess(job->node, AttemptName(*job));
  if (IsNodesFault(report, *job)) Suspect(job->node, job->id, now);
  if (*report.input == JobInput::kTrainerStarted) NoteMeeting(*job, /*found=*/true, now);
  if (*report.input == JobInput::kAttemptLost) {
    LoseAttempt(*job, LossOf(report, *job, job->node), now);
  } else if (*report.input == JobInput::kArtifactStored) {
    if (job->state == JobState::kPublishing) Publish(*job, std::move(report), now);
  } else {
    Apply(*job, *report.input, report.message, now);
  }
  return true;
}

bool State::RecordOfOther(const Job& job, const Report& report, absl::Time now) {
  if (HeldOn(job, report.node) == nullptr) return false;
  if (!report.input || !SaysProcessEnded(*report.input)) return true;
  ForgetProcess(report.node, AttemptName(job));
  EndPart(job, report.node, now);
  const bool lost = *report.input == JobInput::kAttemptLost, failed = *report.input == JobInput::kAttemptFailed;
  if (!(lost || failed) || !NeedsAllNodes(job.state)) return true;
  if (IsNodesFault(report, job)) Suspect(report.node, job.id, now);
  StopRest(job, {job.node, job.held}, now);
  if (lost) {
    LoseAttempt(job, LossOf(report, job, report.node), now);
  } else {
    if (report.job_report) jobs_.Update(job, [&](Job& j) { j.report = *report.job_report; });  // has the cause
    Apply(job, JobInput::kAttemptFailed, absl::StrCat("on node ", report.node, ": ", report.message), now);
  }
  return true;
}

State::Loss State::LossOf(const Report& report, const Job& job, const std::string& node) {
  const std::string why = job.nodes > 1 ? absl::StrCat("on node ", node, ": ", report.message) : report.message;
  return {.why = why,
          .nodes = report.lost_peer ? WhereRanksLostEachOther(job) : std::vector<std::string>{node},
          .crashed = report.crashed && !report.lost_peer,
          .missed = report.lost_peer && job.state == JobState::kStarting};
}

// Of several nodes nobody knows which two: it counts for all of them, until an attempt shows of some that they do.
void State::NoteMeeting(const Job& job, bool found, absl::Time now) {
  const std::vector<Place> places = PlacesOf(job);
  for (const Place& place : places) {
    const auto node = nodes_.find(place.node);
    if (node == nodes_.end() || (found && node->second.missed.empty())) continue;
    std::map<std::string, Node::Missed>& missed = node->second.missed;
    undo_.push_back([this, id = place.node, missed] { nodes_[id].missed = missed; });
    for (const Place& other : places) {
      if (found) {
        missed.erase(other.node);
      } else if (other.node != place.node) {
        missed[other.node] = {missed[other.node].times + 1, now + kMissedFor};
      }
    }
  }
}

void State::ForgetMissed(const std::string& id) {
  for (auto& [other, node] : nodes_) {
    if (node.missed.empty()) continue;
    undo_.push_back([this, other = other, missed = node.missed] { nodes_[other].missed = missed; });
    if (other == id) {
      node.missed.clear();
    } else {
      node.missed.erase(id);
    }
  }
}

void State::EndPart(const Job& job, const std::string& node, absl::Time now) {
  const std::vector<int>* held = HeldOn(job, node);
  if (held->empty()) return;
  SettleCharge(job, static_cast<int>(held->size()), now);
  jobs_.Update(job, [&](Job& j) { j.others[static_cast<size_t>(RankOf(j, node)) - 1].devices.clear(); });
  unsettled_ = true;
}

// The order says that the job does not go on: nobody waits for a checkpoint of an attempt that is not current.
void State::StopRest(const Job& job, const Place& place, absl::Time now) {
  const auto node = nodes_.find(place.node);
  if (place.devices.empty() || node == nodes_.end()) return;
  const std::string attempt = AttemptName(job);
  node->second.leftovers[attempt] = {place.devices, now};
  undo_.push_back([this, id = place.node, attempt] { nodes_[id].leftovers.erase(attempt); });
  effects_.push_back({Effect::Kind::kStop, place.node, attempt, job.number, IndicesOf(place.node, place.devices)});
}

void State::ForgetProcess(const std::string& id, const std::string& attempt) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return;
  if (node->second.processes.erase(attempt) + node->second.leftovers.erase(attempt) > 0) unsettled_ = true;
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

void State::LoseAttemptOn(const std::string& node, const Job& job, const std::string& why, absl::Time now) {
  LoseAttemptOn(node, job, Loss{.why = why, .nodes = {node}}, now);
}

void State::LoseAttemptOn(const std::string& node, const Job& job, const Loss& loss, absl::Time now) {
  if (node != job.node) {
    EndPart(job, node, now);
    if (!NeedsAllNodes(job.state)) return;
    StopRest(job, {job.node, job.held}, now);
  }
  LoseAttempt(job, loss, now);
}

void State::LoseAttempt(const Job& job, const Loss& loss, absl::Time now) {
  const std::string& why = loss.why;
  if (loss.missed) NoteMeeting(job, /*found=*/false, now);
  if (IsStopping(job.state)) {
    Apply(job, JobInput::kAttemptLost, why, now);
    return;
  }
  jobs_.Update(job, [&](Job& j) {
    ++j.lost_attempts;
    j.lost_on.insert(j.lost_on.end(), loss.nodes.begin(), loss.nodes.end());
    if (loss.crashed && !absl::c_linear_search(j.crashed_on, loss.nodes.front()))
      j.crashed_on.push_back(loss.nodes.front());
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
