#include "server/core/policy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "server/core/node_kinds.h"
#include "server/core/placement.h"
#include "server/core/preemption.h"

namespace luthier {
namespace {

constexpr absl::Duration kUsageHalfLife = absl::Hours(24);
constexpr absl::Duration kPriorityPoint = absl::Hours(1);
Wait WhyNot(const Job& job, const std::vector<NodeView>& nodes) {
  if (nodes.empty()) return Wait::kNoNode;
  bool matches = false;
  NodeKinds fit, free;
  for (const NodeView& view : nodes) {
    if (!HasLabels(*view.node, job)) continue;
    matches = true;
    if (!CouldRun(job, *view.node)) continue;
    fit.Add(*view.node);
    if (FreeFor(job, view) >= job.devices) free.Add(*view.node);
  }
  if (!matches) return Wait::kNoMatch;
  return free.most() >= job.nodes ? Wait::kReserved : fit.most() >= job.nodes ? Wait::kBusy : Wait::kTooLarge;
}

// Tenants in the order of what they have used for their weight; ties by name, so that a run can be repeated.
class FairOrder {
 public:
  FairOrder(const std::map<std::string, std::vector<const Job*>>& waiting, std::map<std::string, TenantView>& tenants)
      : tenants_(tenants) {
    for (const auto& [tenant, jobs] : waiting) Push(tenant, jobs, 0);
  }
  // The next job, or null.
  const Job* Next() {
    if (heap_.empty()) return nullptr;
    const auto [share, tenant, jobs, index] = heap_.top();
    heap_.pop();
    const Job* job = (*jobs)[index];
    current_ = {tenant, jobs, index + 1};
    return job;
  }
  // Puts the tenant of the last Next() back, at its new place.
  void Return() { Push(std::get<0>(current_), *std::get<1>(current_), std::get<2>(current_)); }

 private:
  using Jobs = std::vector<const Job*>;
  void Push(const std::string& tenant, const Jobs& jobs, size_t index) {
    if (index >= jobs.size()) return;
    const TenantView& view = tenants_[tenant];
    heap_.emplace(view.usage / view.weight, tenant, &jobs, index);
  }
  using Entry = std::tuple<double, std::string, const Jobs*, size_t>;
  std::map<std::string, TenantView>& tenants_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap_;
  std::tuple<std::string, const Jobs*, size_t> current_;
};

// The first one leads.
void AddPlace(Place place, Decision& decision) {
  if (!decision.node.empty()) return decision.others.push_back(std::move(place));
  decision.node = std::move(place.node);
  decision.devices = std::move(place.devices);
}

void Take(const Views& views, const Job& job, absl::Time end, Decision& decision) {
  for (NodeView* view : views) {
    AddPlace({view->node->id, TakeFree(job, job.devices, *view)}, decision);
    AddRelease(job, end, *view);
  }
}

bool HasGuarantees(const Snapshot& snapshot) {
  return std::any_of(snapshot.tenants.begin(), snapshot.tenants.end(),
                     [](const auto& tenant) { return tenant.second.guaranteed_devices > 0; });
}

// It starts, or room is made for it.
bool GetsSomething(const Decision& decision) {
  return decision.wait == Wait::kNone || decision.wait == Wait::kMakingRoom;
}

// One look at everything that waits. What is decided for a job changes what those behind it can have.
class Cycle {
 public:
  using Jobs = std::set<const Job*>;

  // `passed_over`: jobs that are known to get nothing, and hold up none within the guarantee of their tenant. `first`:
  // one of them that comes first all the same.
  Cycle(Snapshot snapshot, const Jobs& passed_over, const Job* first = nullptr)
      : snapshot_(std::move(snapshot)), passed_over_(passed_over), first_(first) {}

  // Jobs within the guarantee of their tenant come first, so that nobody borrows again what was taken back for them.
  // One that would go beyond it waits among the others. It holds up none behind it that is within, unless that is less
  // urgent: what it stops of its own tenant would else come before it, and have the same devices again.
  std::vector<Decision> Run(bool guarantees) {
    for (const bool own : {true, false}) {
      if (own && !guarantees) continue;
      for (const auto& waiting : snapshot_.waiting) LookAt(waiting, own);
    }
    return std::move(decisions_);
  }
  // Of the jobs beyond the guarantee that held up others within it, those that got nothing all the same.
  Jobs HeldUpForNothing(const std::vector<Decision>& decisions) const {
    Jobs jobs;
    for (const Decision& decision : decisions) {
      if (!GetsSomething(decision) && beyond_.count(decision.job) > 0 && held_up_.count(decision.job->tenant) > 0)
        jobs.insert(decision.job);
    }
    return jobs;
  }

 private:
  void LookAt(const std::map<std::string, std::vector<const Job*>>& waiting, bool own) {
    FairOrder order(waiting, snapshot_.tenants);
    while (const Job* job = order.Next()) {
      if (own ? ComesFirst(*job) : decided_.count(job) == 0) {
        if (own) decided_.insert(job);
        decisions_.push_back(DecisionFor(*job, own && job != first_));
      }
      order.Return();
    }
  }

  bool IsAtLimit(const Job& job) {
    const TenantView& tenant = snapshot_.tenants[job.tenant];
    return tenant.max_devices > 0 && tenant.running_devices + AllDevices(job) > tenant.max_devices;
  }
  bool IsOwn(const Job& job) { return snapshot_.tenants[job.tenant].Guarantees(AllDevices(job)) && !IsAtLimit(job); }
  // Whether the job is within the guarantee of its tenant, and behind nothing more urgent beyond it. Requires that
  // classes are looked at from the most urgent on.
  bool ComesFirst(const Job& job) {
    if (&job == first_) return true;
    if (!IsOwn(job)) {
      if (passed_over_.count(&job) > 0) return false;
      beyond_.insert(&job);
      most_urgent_beyond_.try_emplace(job.tenant, job.service_class);
      return false;
    }
    const auto beyond = most_urgent_beyond_.find(job.tenant);
    if (beyond == most_urgent_beyond_.end() || beyond->second == job.service_class) return true;
    held_up_.insert(job.tenant);
    return false;
  }

  Decision DecisionFor(const Job& job, bool own) {
    Decision decision{&job};
    TenantView& tenant = snapshot_.tenants[job.tenant];
    const absl::Duration duration = ExpectedDuration(job, *snapshot_.speeds);
    const absl::Time end = snapshot_.now + duration;
    if (IsAtLimit(job)) {
      decision.wait = Wait::kTenantLimit;
    } else if (!own && awaited_.count(job.tenant) > 0) {
      // What the tenant borrowed now would be its own when the room is there, and the job that waits for it no more.
      decision.wait = WhyNot(job, snapshot_.nodes);
    } else if (const Views views = BestNodes(job, snapshot_.nodes, reservation_, end); !views.empty()) {
      TakeSpare(views, job, end);
      Take(views, job, end, decision);
      tenant.Charge(job, duration, tenant.kept_devices);
    } else if (const auto room = CheapestRoom(job, own, snapshot_, reservation_, end)) {
      TakeSpare(room->views, job, end);
      Promise(*room, job, end, snapshot_);
      tenant.Charge(job, duration, tenant.promised_devices);
      if (own) awaited_.insert(job.tenant);
      decision.wait = Wait::kMakingRoom;
      for (const NodeView* view : room->views) AddPlace({view->node->id, {}}, decision);
      decision.preempted = room->victims;
    } else {
      decision.wait = WhyNot(job, snapshot_.nodes);
      if (!reservation_) {
        reservation_ = Reserve(job, snapshot_.nodes, snapshot_.now);
        if (reservation_) decision.not_before = reservation_->start;
      }
    }
    return decision;
  }
  // What the job has of the nodes of the reservation when that starts is not spare any more.
  void TakeSpare(const Views& views, const Job& job, absl::Time end) {
    if (!reservation_ || end <= reservation_->start) return;
    for (Reservation::Kept& kept : reservation_->nodes) {
      if (std::count(views.begin(), views.end(), kept.view) > 0) kept.spare -= job.devices;
    }
  }

  Snapshot snapshot_;
  const Jobs& passed_over_;
  const Job* const first_;
  std::optional<Reservation> reservation_;                  // of the first that can have nothing
  Jobs decided_;                                            // within the guarantee of their tenants
  Jobs beyond_;                                             // those that may hold up less urgent ones within it
  std::map<std::string, ServiceClass> most_urgent_beyond_;  // by tenant, of those
  std::set<std::string> held_up_;                           // tenants of which a job is held up so
  std::set<std::string> awaited_;                           // tenants for whose own room is made
  std::vector<Decision> decisions_;
};

bool IsLessUrgentOfItsTenant(const Job& job, const Job& than) {
  return job.tenant == than.tenant && job.service_class > than.service_class;
}

// Whether `job` starts by `others`, at the cost of nothing but what is less urgent of its own tenant.
bool StartsInsteadOfItsOwn(const Job& job, const std::vector<Decision>& decisions,
                           const std::vector<Decision>& others) {
  std::map<const Job*, Wait> waits;
  for (const Decision& other : others) waits[other.job] = other.wait;
  if (waits[&job] != Wait::kNone) return false;
  return std::all_of(decisions.begin(), decisions.end(), [&](const Decision& decision) {
    return !GetsSomething(decision) || IsLessUrgentOfItsTenant(*decision.job, job) ||
           waits[decision.job] == decision.wait;
  });
}

// What was placed elsewhere once a job was passed over may leave room for that job after all, had not what is less
// urgent of its own tenant, which it held up no more, taken it. Then it has that instead.
std::vector<Decision> WithThosePassedOver(std::vector<Decision> decisions, const Snapshot& snapshot,
                                          const Cycle::Jobs& passed_over) {
  std::vector<const Job*> jobs(passed_over.begin(), passed_over.end());
  std::sort(jobs.begin(), jobs.end(), [](const Job* a, const Job* b) {
    return a->service_class == b->service_class ? ComesBefore(*a, *b) : a->service_class < b->service_class;
  });
  for (const Job* job : jobs) {
    const bool behind_its_own = std::any_of(decisions.begin(), decisions.end(), [&](const Decision& decision) {
      return decision.wait == Wait::kNone && IsLessUrgentOfItsTenant(*decision.job, *job);
    });
    const bool starts = std::any_of(decisions.begin(), decisions.end(), [&](const Decision& decision) {
      return decision.job == job && decision.wait == Wait::kNone;
    });
    if (!behind_its_own || starts) continue;
    std::vector<Decision> others = Cycle(snapshot, passed_over, job).Run(/*guarantees=*/true);
    if (StartsInsteadOfItsOwn(*job, decisions, others)) decisions = std::move(others);
  }
  return decisions;
}

}  // namespace

double Tenant::UsageAt(absl::Time now) const {
  if (usage == 0 || now <= usage_time) return usage;
  return usage * std::exp2(-absl::FDivDuration(now - usage_time, kUsageHalfLife));
}

void Tenant::Charge(double device_seconds, absl::Time now) {
  usage = std::max(0.0, UsageAt(now) + device_seconds);
  usage_time = now;
}

void TenantView::Charge(const Job& job, absl::Duration duration, int& devices) {
  devices += AllDevices(job);
  running_devices += AllDevices(job);
  usage += absl::ToDoubleSeconds(duration) * AllDevices(job);
}

bool ComesBefore(const Job& a, const Job& b) {
  if (a.priority == b.priority) return std::tie(a.create_time, a.number) < std::tie(b.create_time, b.number);
  const auto key = [](const Job& job) {
    return std::make_pair(job.create_time - job.priority * kPriorityPoint, job.number);
  };
  return key(a) < key(b);
}

// A job beyond the guarantee of its tenant holds up what is less urgent and within it only if it gets something. That
// turns out at the end of a cycle, so there is another one in which those that got nothing hold up none; most often it
// is the last. Each one passes over jobs more, all of those at once, and none twice: so there are no more cycles than
// jobs beyond a guarantee, of the few hundred that a snapshot has.
std::vector<Decision> Decide(Snapshot snapshot) {
  Cycle::Jobs passed_over;
  if (!HasGuarantees(snapshot)) return Cycle(std::move(snapshot), passed_over).Run(/*guarantees=*/false);
  while (true) {
    Cycle cycle(snapshot, passed_over);
    std::vector<Decision> decisions = cycle.Run(/*guarantees=*/true);
    const Cycle::Jobs for_nothing = cycle.HeldUpForNothing(decisions);
    if (for_nothing.empty()) return WithThosePassedOver(std::move(decisions), snapshot, passed_over);
    passed_over.insert(for_nothing.begin(), for_nothing.end());
  }
}

}  // namespace luthier
