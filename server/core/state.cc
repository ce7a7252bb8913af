// The State as a whole: what it begins with, what time alone does, how a job changes, and the end of a batch.
#include "server/core/state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// What is left of delays, and the age of attempts, by which they are charged for and may be stopped for others. A batch
// that could not be written is undone, but the clock stays where it is: then they are moved once more.
void MoveTimes(JobTable& jobs, std::vector<std::function<void()>>& undo, absl::Duration by) {
  const std::vector<const Job*> delayed = jobs.Delayed();
  std::vector<const Job*> running;
  jobs.ForEach([&](const Job& job) {
    if (HoldsDevices(job.state)) running.push_back(&job);
  });
  if (delayed.empty() && running.empty()) return;
  for (const Job* job : delayed) jobs.Update(*job, [&](Job& j) { j.not_before += by; });
  for (const Job* job : running) {
    jobs.Update(*job, [&](Job& j) {
      j.attempt_start += by;
      j.expected_end += by;
    });
  }
  undo.push_back([&jobs, &undo, by] { MoveTimes(jobs, undo, by); });
}

}  // namespace

void State::LoadJob(std::unique_ptr<Job> job, absl::Time now) {
  if (HoldsDevices(job->state)) {
    for (const Place& place : PlacesOf(*job)) {
      Node& node = nodes_[place.node];
      node.id = place.node;
      node.deadline = now + kLease;
    }
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

void State::ClockJumped(absl::Duration by) {
  for (auto& [id, node] : nodes_) {
    node.deadline += by;
    node.quarantine_end += by;
    for (auto& [job, time] : node.losses) time += by;
    for (auto& [other, missed] : node.missed) missed.end += by;
    for (auto& [attempt, leftover] : node.leftovers) leftover.since += by;
  }
  next_lease_check_ = next_preemption_ = absl::InfinitePast();
  MoveTimes(jobs_, undo_, by);
}

void State::StoodStill(absl::Duration duration) {
  for (auto& [id, node] : nodes_) node.deadline += duration;
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

void State::Apply(const Job& job, JobInput input, const std::string& message, absl::Time now) {
  const std::optional<JobState> next = NextState(job.state, input);
  if (!next) return;
  if (input == JobInput::kTrainerFinished) {
    for (const Place& place : PlacesOf(job)) {
      if (const auto node = nodes_.find(place.node); node != nodes_.end()) node->second.losses.clear();
    }
  }
  if (HoldsDevices(job.state) && !HoldsDevices(*next)) {
    SettleCharge(job, HeldDevices(job), now);
    for (const Place& place : job.others) StopRest(job, place, now);
    unsettled_ = true;
  }
  if (IsWaiting(*next)) unsettled_ = true;
  if (IsTerminal(*next) && job.stored_step > 0) {
    writes_.checkpoints.push_back({job.number, job.attempt, job.stored_step, std::nullopt});
    CountStored(job.tenant, -job.stored_bytes);
  }
  jobs_.Update(job, [&](Job& j) {
    j.state = *next;
    if (IsTerminal(*next)) j.stored_step = j.stored_bytes = 0;
    if (!HoldsDevices(*next)) {
      j.held.clear();
      j.others.clear();
    }
    if (IsWaiting(*next)) j.waiting_since = now;
    if (IsTerminal(*next)) j.end_time = now;
  });
  Event event{.attempt = job.attempt, .type = "state", .message = message, .state = static_cast<int>(*next)};
  AddEvent(job, std::move(event), now);
}

const Job& State::AddEvent(const Job& job, Event event, absl::Time now) {
  event.job = job.number;
  event.sequence = job.last_event + 1;
  event.time = now;
  writes_.events.push_back(std::move(event));
  return jobs_.Update(job, [](Job& j) { ++j.last_event; });
}

void State::Send(Effect::Kind kind, const Job& job) {
  SendTo(0, kind, job);
  if (kind == Effect::Kind::kCheckpoint) return;
  for (int rank = 1; rank < job.nodes; ++rank) SendTo(rank, kind, job);
}

void State::SendTo(int node_rank, Effect::Kind kind, const Job& job) {
  const Place place = PlacesOf(job).at(static_cast<size_t>(node_rank));
  if (node_rank > 0 && place.devices.empty()) return;  // its part has ended
  const bool starts_gang = kind == Effect::Kind::kStart && job.nodes > 1;
  // After a restart of the server nobody knows where the leading node waits before it is there again (GoOnWith).
  if (starts_gang && nodes_.at(job.node).gang_address.empty()) return;
  Effect effect{kind, place.node, AttemptName(job), job.number, IndicesOf(place.node, place.devices)};
  effect.job_goes_on = kind == Effect::Kind::kStop && job.state != JobState::kCancelling;
  if (starts_gang) effect.gang = GangPlaceOf(job, node_rank);
  effects_.push_back(std::move(effect));
}

// A whole CPU node has one device, which no index names.
std::vector<int> State::IndicesOf(const std::string& id, const std::vector<int>& devices) const {
  const auto node = nodes_.find(id);
  const bool named = node != nodes_.end() && (node->second.gpus || node->second.shares > 1);
  return named ? devices : std::vector<int>();
}

// No two attempts of a node share a device, so no two share a port.
GangPlace State::GangPlaceOf(const Job& job, int node_rank) const {
  const Node& leading = nodes_.at(job.node);
  const int lowest = *std::min_element(job.held.begin(), job.held.end());
  return {.node_rank = node_rank,
          .meeting = absl::StrCat(leading.gang_address, ":", leading.gang_port + lowest),
          .address = nodes_.at(PlacesOf(job).at(static_cast<size_t>(node_rank)).node).gang_address};
}

bool State::HasDecided() const {
  return jobs_.HasChanged() || !writes_.empty() || !changed_tenants_.empty() || !effects_.empty() || !undo_.empty();
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
