#include "server/core/forecast.h"

#include <algorithm>
#include <map>
#include <utility>

#include "server/core/placement.h"

namespace luthier {
namespace {

// One in ten jobs takes more than this many times as long as expected.
constexpr double kLateFactor = 1.8;

NodeView& ViewOf(const std::string& node, Snapshot& snapshot) {
  return *std::find_if(snapshot.nodes.begin(), snapshot.nodes.end(),
                       [&](const NodeView& view) { return view.node->id == node; });
}

// What the policy is asked about: a job that its sweep is not to start yet waits for one before it to end.
Snapshot WithinSweepLimits(Snapshot snapshot) {
  std::map<int64_t, int> room;  // jobs that may start, of each sweep with a limit
  const auto is_beyond = [&](const Job* job) {
    if (job->max_parallel == 0) return false;
    const auto [left, first] = room.try_emplace(job->sweep, job->max_parallel);
    if (first) left->second -= static_cast<int>(snapshot.ends_of_sweeps[job->sweep].size());
    return left->second-- <= 0;
  };
  for (auto& waiting : snapshot.waiting) {
    for (auto& [tenant, jobs] : waiting) std::erase_if(jobs, is_beyond);
  }
  return snapshot;
}

// Carries a decision out in a snapshot.
void StartIn(const Decision& decision, double slower, Snapshot& snapshot) {
  const Job& job = *decision.job;
  const absl::Duration duration = ExpectedDuration(job, *snapshot.speeds);
  const absl::Time end = snapshot.now + duration * slower;
  const auto start_on = [&](const std::string& node, const std::vector<int>& devices) {
    NodeView& view = ViewOf(node, snapshot);
    for (const int device : devices) view.free.erase(std::find(view.free.begin(), view.free.end(), device));
    AddRelease(job, end, view);
  };
  start_on(decision.node, decision.devices);
  for (const Place& place : decision.others) start_on(place.node, place.devices);
  if (job.max_parallel > 0) snapshot.ends_of_sweeps[job.sweep][job.number] = end;
  TenantView& tenant = snapshot.tenants[job.tenant];
  tenant.Charge(job, duration, tenant.kept_devices);
  for (auto& waiting : snapshot.waiting) {
    for (auto& [id, jobs] : waiting) jobs.erase(std::remove(jobs.begin(), jobs.end(), &job), jobs.end());
  }
}

// What was preempted may come back later than this says.
void StopIn(const Job& victim, Snapshot& snapshot) {
  for (NodeView& view : snapshot.nodes) {
    for (Release& release : view.releases) {
      if (release.preemptible != &victim) continue;
      release.end = snapshot.now;
      release.preemptible = nullptr;
    }
  }
  if (victim.max_parallel > 0) snapshot.ends_of_sweeps[victim.sweep][victim.number] = snapshot.now;
}

// Lets time pass. Which device comes back does not matter to a forecast; none of them is there twice.
void ReleaseUntil(absl::Time time, Snapshot& snapshot) {
  snapshot.now = time;
  for (NodeView& view : snapshot.nodes) {
    for (auto release = view.releases.begin(); release != view.releases.end();) {
      if (release->end > time) {
        ++release;
        continue;
      }
      if (const auto tenant = snapshot.tenants.find(release->tenant); tenant != snapshot.tenants.end()) {
        tenant->second.running_devices -= release->devices;
        tenant->second.kept_devices -= release->devices;
      }
      for (int i = 0; i < release->devices; ++i) view.free.push_back(view.free.empty() ? 0 : view.free.back() + 1);
      release = view.releases.erase(release);
    }
  }
  for (auto& [sweep, ends] : snapshot.ends_of_sweeps)
    std::erase_if(ends, [&](const auto& end) { return end.second <= time; });
}

// When something ends next. What should have ended by now is expected to end at any moment. InfiniteFuture: nothing
// does any more.
absl::Time NextEnd(const Snapshot& snapshot) {
  absl::Time next = absl::InfiniteFuture();
  for (const NodeView& view : snapshot.nodes) {
    for (const Release& release : view.releases) next = std::min(next, std::max(release.end, snapshot.now));
  }
  for (const auto& [sweep, ends] : snapshot.ends_of_sweeps) {
    for (const auto& [job, end] : ends) next = std::min(next, std::max(end, snapshot.now));
  }
  return next;
}

// InfiniteFuture if the job never fits, or is not in the snapshot.
absl::Time StartOf(int64_t number, Snapshot snapshot, double slower, int64_t& ahead) {
  const auto delay = [&](absl::Time& end) {
    end = snapshot.now + std::max(absl::ZeroDuration(), end - snapshot.now) * slower;
  };
  for (auto& [sweep, ends] : snapshot.ends_of_sweeps) {
    for (auto& [job, end] : ends) delay(end);
  }
  for (NodeView& view : snapshot.nodes) {
    for (Release& release : view.releases) delay(release.end);
    if (view.stopping > 0) view.releases.push_back({snapshot.now, std::exchange(view.stopping, 0)});
  }
  while (true) {
    for (const Decision& decision : Decide(WithinSweepLimits(snapshot))) {
      for (const Job* victim : decision.preempted) StopIn(*victim, snapshot);
      if (decision.wait != Wait::kNone) continue;
      if (decision.job->number == number) return snapshot.now;
      ++ahead;
      StartIn(decision, slower, snapshot);
    }
    const absl::Time next = NextEnd(snapshot);
    if (next == absl::InfiniteFuture()) return next;
    ReleaseUntil(next, snapshot);
  }
}

}  // namespace

std::unique_ptr<DetachedSnapshot> Detach(Snapshot snapshot) {
  auto detached = std::make_unique<DetachedSnapshot>();
  std::map<const Job*, const Job*> running;  // what runs on several nodes is one job here, too
  for (NodeView& view : snapshot.nodes) {
    view.node = &detached->nodes.emplace_back(*view.node);
    for (Release& release : view.releases) {
      if (release.preemptible == nullptr) continue;
      const Job*& copy = running[release.preemptible];
      if (copy == nullptr) copy = &detached->jobs.emplace_back(*release.preemptible);
      release.preemptible = copy;
    }
  }
  for (auto& waiting : snapshot.waiting) {
    for (auto& [tenant, jobs] : waiting) {
      for (const Job*& job : jobs) job = &detached->jobs.emplace_back(*job);
    }
  }
  detached->speeds = *snapshot.speeds;
  snapshot.speeds = &detached->speeds;
  detached->snapshot = std::move(snapshot);
  return detached;
}

Forecast ForecastOf(int64_t number, const Snapshot& snapshot) {
  Forecast forecast;
  int64_t ignored = 0;
  forecast.start = StartOf(number, snapshot, 1.0, forecast.ahead);
  forecast.late_start = StartOf(number, snapshot, kLateFactor, ignored);
  return forecast;
}

}  // namespace luthier
