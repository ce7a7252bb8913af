#include "server/core/job_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace luthier {
namespace {

// One that publishes is as good as done.
bool CanMissDeadline(const Job& job) {
  return job.deadline != absl::InfiniteFuture() && !IsTerminal(job.state) && job.state != JobState::kCancelling &&
         job.state != JobState::kPublishing;
}

bool MayPublish(const Job& job) { return !IsTerminal(job.state); }
bool PublishesUnderItsId(const Job& job) { return job.model == job.id; }

}  // namespace

const Job* JobTable::Find(absl::string_view id) const {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : found->second.get();
}

Job& JobTable::Add(std::unique_ptr<Job> job) {
  Job& mine = *job;
  jobs_.emplace(mine.id, std::move(job));
  Index(mine);
  CountUses(mine, 1);
  return mine;
}

void JobTable::Remove(const Job& job) {
  CountUses(job, -1);
  jobs_.erase(job.id);
}

void JobTable::Borrow(Job job) {
  AddFinished(job.state, -1);  // it is counted while it is here
  Job& mine = Add(std::make_unique<Job>(std::move(job)));
  before_.try_emplace(mine.number, Before{&mine, std::make_unique<Job>(mine)});
}

const Job& JobTable::Insert(Job job) {
  Job& mine = Add(std::make_unique<Job>(std::move(job)));
  before_.try_emplace(mine.number, Before{&mine, nullptr});
  return mine;
}

std::vector<const Job*> JobTable::Changed() const {
  std::vector<const Job*> changed;
  for (const auto& [number, before] : before_) changed.push_back(before.now);
  return changed;
}

void JobTable::Commit() {
  for (const auto& [number, before] : std::exchange(before_, {})) {
    if (IsTerminal(before.now->state)) Remove(*before.now);
  }
}

void JobTable::Rollback() {
  for (auto& [number, before] : std::exchange(before_, {})) {
    Unindex(*before.now);
    if (before.job) {
      // The key is a view of the id, whose bytes may move with the assignment.
      std::unique_ptr<Job> job = std::move(jobs_.at(before.now->id));
      jobs_.erase(job->id);
      *job = *std::move(before.job);
      Index(*job);
      const Job& restored = *job;
      jobs_.emplace(restored.id, std::move(job));
      if (IsTerminal(restored.state)) Remove(restored);  // it was here for a change that did not happen
      continue;
    }
    Remove(*before.now);
  }
}

bool JobTable::EndDelays(absl::Time now) {
  bool any = false;
  while (!delayed_.empty() && (*delayed_.begin())->not_before <= now) {
    const Job* job = *delayed_.begin();
    delayed_.erase(delayed_.begin());
    queues_[{job->service_class, job->tenant}].insert(job);
    any = true;
  }
  return any;
}

const Job* JobTable::Overdue(absl::Time now) const {
  return deadlines_.empty() || (*deadlines_.begin())->deadline > now ? nullptr : *deadlines_.begin();
}

const std::set<std::string>& JobTable::OnNode(const std::string& node) const {
  static const std::set<std::string> none;
  const auto found = on_node_.find(node);
  return found == on_node_.end() ? none : found->second;
}

int64_t JobTable::UsesOf(const std::string& resource) const {
  absl::string_view id = resource;
  const auto& uses = absl::ConsumePrefix(&id, "baseModels/") ? uses_of_base_models_ : uses_of_datasets_;
  absl::ConsumePrefix(&id, "datasets/");
  const auto found = uses.find(id);
  return found == uses.end() ? 0 : found->second;
}

// Without names of resources, which a million jobs would each make and throw away.
void JobTable::CountUses(const Job& job, int by) {
  const auto add = [by](absl::flat_hash_map<std::string, int64_t>& uses, absl::string_view id) {
    int64_t& count = uses[id];
    count += by;
    if (count == 0) uses.erase(id);
  };
  add(uses_of_base_models_, job.base_model);
  for (const absl::string_view id : absl::StrSplit(job.datasets, ',', absl::SkipEmpty())) add(uses_of_datasets_, id);
}

std::string JobTable::AUserOf(const std::string& resource) const {
  for (const auto& [id, job] : jobs_) {
    const std::vector<std::string> names = ResourcesOf(*job);
    if (std::find(names.begin(), names.end(), resource) != names.end()) return job->id;
  }
  return "";
}

const std::string* JobTable::PublisherOf(const std::string& model) const {
  if (const auto found = publishers_.find(model); found != publishers_.end()) return &found->second.tenant;
  const Job* job = Find(model);
  return job != nullptr && PublishesUnderItsId(*job) && MayPublish(*job) ? &job->tenant : nullptr;
}

absl::Time JobTable::OldestWaiting() const {
  absl::Time oldest = absl::InfiniteFuture();
  for (const auto& [tenant, waiting] : by_age_) oldest = std::min(oldest, (*waiting.begin())->create_time);
  return oldest;
}

absl::Time JobTable::OldestWaitingOf(const std::string& tenant) const {
  const auto found = by_age_.find(tenant);
  return found == by_age_.end() ? absl::InfiniteFuture() : (*found->second.begin())->create_time;
}

JobTable::Load JobTable::LoadOf(const std::string& tenant) const {
  const auto found = loads_.find(tenant);
  return found == loads_.end() ? Load{} : found->second;
}

int JobTable::RunningOf(int64_t sweep) const {
  const auto found = running_of_sweep_.find(sweep);
  return found == running_of_sweep_.end() ? 0 : found->second;
}

bool JobTable::RunsLessUrgentThan(ServiceClass service_class) const {
  return std::any_of(running_.begin() + static_cast<int>(service_class) + 1, running_.end(),
                     [](int64_t count) { return count > 0; });
}

void JobTable::Index(const Job& job) {
  ++counts_[static_cast<size_t>(job.state)];
  if (CanMissDeadline(job)) deadlines_.insert(&job);
  if (MayPublish(job) && !PublishesUnderItsId(job)) {
    Publishers& publishers = publishers_[job.model];
    if (publishers.jobs++ == 0) publishers.tenant = job.tenant;
  }
  if (IsResting(job.state)) ++loads_[job.tenant].resting;
  if (IsWaiting(job.state)) {
    // Mostly the newest, and a million of them when the server starts: the hint spares the search for the place.
    std::set<const Job*, AgeOrder>& waiting = by_age_[job.tenant];
    waiting.insert(waiting.end(), &job);
    ++loads_[job.tenant].waiting;
    if (job.not_before == absl::InfinitePast()) {
      Queue& queue = queues_[{job.service_class, job.tenant}];
      queue.insert(queue.end(), &job);
    } else {
      delayed_.insert(&job);
    }
  }
  if (HoldsDevices(job.state)) {
    on_node_[job.node].insert(job.id);
    for (const Place& place : job.others) {
      if (!place.devices.empty()) on_node_[place.node].insert(job.id);
    }
    CountHeld(job, 1);
  }
}

void JobTable::Unindex(const Job& job) {
  --counts_[static_cast<size_t>(job.state)];
  if (CanMissDeadline(job)) deadlines_.erase(&job);
  if (MayPublish(job) && !PublishesUnderItsId(job)) {
    const auto publishers = publishers_.find(job.model);
    if (--publishers->second.jobs == 0) publishers_.erase(publishers);
  }
  if (IsResting(job.state)) --loads_[job.tenant].resting;
  if (IsWaiting(job.state)) {
    const auto waiting = by_age_.find(job.tenant);
    waiting->second.erase(&job);
    if (waiting->second.empty()) by_age_.erase(waiting);
    --loads_[job.tenant].waiting;
    const auto queue = queues_.find({job.service_class, job.tenant});
    if (queue != queues_.end() && queue->second.erase(&job) > 0) {
      if (queue->second.empty()) queues_.erase(queue);
    } else {
      delayed_.erase(&job);
    }
  }
  if (HoldsDevices(job.state)) {
    const auto leave = [&](const std::string& node) {
      const auto found = on_node_.find(node);
      found->second.erase(job.id);
      if (found->second.empty()) on_node_.erase(found);
    };
    leave(job.node);
    for (const Place& place : job.others) {
      if (!place.devices.empty()) leave(place.node);
    }
    CountHeld(job, -1);
  }
}

void JobTable::CountHeld(const Job& job, int by) {
  running_[static_cast<size_t>(job.service_class)] += by;
  Load& load = loads_[job.tenant];
  const int held = by * HeldDevices(job);
  load.running_devices += held;
  if (IsStopping(job.state)) load.stopping_devices += held;
  if (job.max_parallel <= 0) return;
  int& running = running_of_sweep_[job.sweep];
  running += by;
  if (running == 0) running_of_sweep_.erase(job.sweep);
}

}  // namespace luthier
