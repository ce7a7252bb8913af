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

// Carries a decision out in a snapshot.
void StartIn(const Decision& decision, double slower, Snapshot& snapshot) {
  const auto start_on = [&](const std::string& node, const std::vector<int>& devices) {
    NodeView& view = ViewOf(node, snapshot);
    for (const int device : devices) view.free.erase(std::find(view.free.begin(), view.free.end(), device));
    AddRelease(*decision.job, snapshot.now + ExpectedDuration(*decision.job) * slower, view);
  };
  start_on(decision.node, decision.devices);
  for (const Place& place : decision.others) start_on(place.node, place.devices);
  TenantView& tenant = snapshot.tenants[decision.job->tenant];
  tenant.Charge(*decision.job, tenant.kept_devices);
  for (auto& waiting : snapshot.waiting) {
    for (auto& [id, jobs] : waiting) jobs.erase(std::remove(jobs.begin(), jobs.end(), decision.job), jobs.end());
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
}

// InfiniteFuture if the job never fits, or is not in the snapshot.
absl::Time StartOf(int64_t number, Snapshot snapshot, double slower, int64_t& ahead) {
  for (NodeView& view : snapshot.nodes) {
    for (Release& release : view.releases)
      release.end = snapshot.now + std::max(absl::ZeroDuration(), release.end - snapshot.now) * slower;
    if (view.stopping > 0) view.releases.push_back({snapshot.now, std::exchange(view.stopping, 0)});
  }
  while (true) {
    for (const Decision& decision : Decide(snapshot)) {
      for (const Job* victim : decision.preempted) StopIn(*victim, snapshot);
      if (decision.wait != Wait::kNone) continue;
      if (decision.job->number == number) return snapshot.now;
      ++ahead;
      StartIn(decision, slower, snapshot);
    }
    // What should have ended by now is expected to end at any moment.
    absl::Time next = absl::InfiniteFuture();
    for (const NodeView& view : snapshot.nodes) {
      for (const Release& release : view.releases) next = std::min(next, std::max(release.end, snapshot.now));
    }
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
