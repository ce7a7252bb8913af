#include "server/core/policy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_split.h"

namespace luthier {
namespace {

constexpr absl::Duration kUsageHalfLife = absl::Hours(24);
constexpr absl::Duration kPriorityPoint = absl::Hours(1);
// A node that lost the same job so often is avoided, though the job's checkpoints lie there.
constexpr int kLostHereLimit = 2;

// One in ten jobs takes more than this many times as long as expected.
constexpr double kLateFactor = 1.8;

// The place that is kept for the first job that fits nowhere.
struct Reservation {
  const NodeView* node;
  absl::Time start;
  int spare;  // devices that are free at `start` beyond what the job needs
};

bool IsLargeEnough(int device, const Node& node, const Job& job) {
  const auto index = static_cast<size_t>(device);
  return index >= node.memory.size() || node.memory[index] >= MemoryFor(job, node);
}

int CountLargeEnough(const std::vector<int>& devices, const Node& node, const Job& job) {
  return static_cast<int>(
      std::count_if(devices.begin(), devices.end(), [&](int device) { return IsLargeEnough(device, node, job); }));
}

// Devices that the job could have at once.
int FreeFor(const Job& job, const NodeView& view) { return CountLargeEnough(view.free, *view.node, job); }

// When there is room for the job on a node, and how many devices are free by then. Releases do not say which devices
// they are: on a node whose devices differ, this may be early.
std::pair<absl::Time, int> FreeAt(const NodeView& view, const Job& job, absl::Time now) {
  const int devices = job.devices;
  int free = FreeFor(job, view) + view.stopping;
  absl::Time time = now;
  std::vector<Release> releases = view.releases;
  std::sort(releases.begin(), releases.end(),
            [](const Release& a, const Release& b) { return std::tie(a.end, a.devices) < std::tie(b.end, b.devices); });
  for (const Release& release : releases) {
    if (free >= devices) break;
    time = std::max(now, release.end);
    free += release.devices;
  }
  return {free >= devices ? time : absl::InfiniteFuture(), free};
}

// The node where the job can start first. None if it fits on no node at all.
std::optional<Reservation> Reserve(const Job& job, const std::vector<NodeView>& nodes, absl::Time now) {
  std::optional<Reservation> best;
  for (const NodeView& view : nodes) {
    if (!CouldRun(job, *view.node)) continue;
    const auto [start, free] = FreeAt(view, job, now);
    if (start == absl::InfiniteFuture()) continue;
    if (!best || start < best->start) best = Reservation{&view, start, free - job.devices};
  }
  return best;
}

// Whether the job may take devices of a node without delaying the reservation.
bool LeavesReservation(const Job& job, const NodeView& view, const std::optional<Reservation>& reservation,
                       absl::Time now) {
  if (!reservation || reservation->node != &view) return true;
  return now + ExpectedDuration(job) <= reservation->start || job.devices <= reservation->spare;
}

// The node that fits best, so that large holes stay for large jobs; the job's last node before any other, because its
// checkpoints lie there, and those where its trainer died after all others.
NodeView* BestNode(const Job& job, std::vector<NodeView>& nodes, const std::optional<Reservation>& reservation,
                   absl::Time now) {
  NodeView* best = nullptr;
  const auto rank = [&](const NodeView& view) {
    const bool last = view.node->id == job.node;
    const bool goes_back = last && job.lost_here < kLostHereLimit;
    const bool avoids = last || std::count(job.crashed_on.begin(), job.crashed_on.end(), view.node->id) > 0;
    const int preference = goes_back ? 0 : avoids ? 2 : 1;
    return std::make_tuple(preference, view.free.size(), view.node->id);
  };
  for (NodeView& view : nodes) {
    if (!CouldRun(job, *view.node) || FreeFor(job, view) < job.devices) continue;
    if (!LeavesReservation(job, view, reservation, now)) continue;
    if (best == nullptr || rank(view) < rank(*best)) best = &view;
  }
  return best;
}

Wait WhyNot(const Job& job, const std::vector<NodeView>& nodes) {
  if (nodes.empty()) return Wait::kNoNode;
  bool matches = false, fits = false, free = false;
  for (const NodeView& view : nodes) {
    if (!HasLabels(*view.node, job)) continue;
    matches = true;
    if (!CouldRun(job, *view.node)) continue;
    fits = true;
    free |= FreeFor(job, view) >= job.devices;
  }
  if (!matches) return Wait::kNoMatch;
  return free ? Wait::kReserved : fits ? Wait::kBusy : Wait::kTooLarge;
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

// Takes devices for the job out of those that are free: the smallest that will do, so that large ones stay.
std::vector<int> TakeFree(const Job& job, int count, NodeView& view) {
  std::vector<int> devices = view.free;
  std::erase_if(devices, [&](int device) { return !IsLargeEnough(device, *view.node, job); });
  const std::vector<int64_t>& memory = view.node->memory;
  const auto size = [&](int device) { return static_cast<size_t>(device) < memory.size() ? memory[device] : 0; };
  std::stable_sort(devices.begin(), devices.end(), [&](int a, int b) { return size(a) < size(b); });
  devices.resize(static_cast<size_t>(count));
  std::sort(devices.begin(), devices.end());
  std::erase_if(view.free, [&](int device) { return std::binary_search(devices.begin(), devices.end(), device); });
  return devices;
}

// What was decided in this cycle stops for nobody.
void AddRelease(const Job& job, absl::Time end, NodeView& view) {
  view.releases.push_back({end, job.devices, nullptr, job.tenant});
}

void Take(NodeView& view, const Job& job, absl::Time now, Decision& decision) {
  decision.node = view.node->id;
  decision.devices = TakeFree(job, job.devices, view);
  AddRelease(job, now + ExpectedDuration(job), view);
}

using Tenants = std::map<std::string, TenantView>;

// Whether an attempt may be stopped for the job, when its tenant loses `taken` devices already. `own`: the job is
// within the guarantee of its tenant. What another tenant has within its guarantee is never taken: the two would stop
// one another in turn.
bool MayStopFor(const Job& job, bool own, const Job& other, const Tenants& tenants, int taken = 0) {
  const bool more_urgent = other.service_class > job.service_class;
  if (other.tenant == job.tenant) return more_urgent;
  if (!more_urgent && !own) return false;
  const auto theirs = tenants.find(other.tenant);
  return theirs == tenants.end() || theirs->second.Borrows(taken + other.devices);
}

// As many of the candidates, in their order, as make room for the job on their node besides what stops already. None if
// that is not enough.
std::optional<std::vector<const Job*>> EnoughOf(const std::vector<const Job*>& candidates, const Job& job, bool own,
                                                const NodeView& view, const Tenants& tenants) {
  const auto gain = [&](const Job& victim) {
    return view.node->memory.empty() ? victim.devices : CountLargeEnough(victim.held, *view.node, job);
  };
  int missing = job.devices - FreeFor(job, view) - view.stopping;
  std::vector<const Job*> victims;
  std::map<std::string, int> taken;  // devices, by tenant
  for (const Job* candidate : candidates) {
    if (missing <= 0) break;
    int& lost = taken[candidate->tenant];
    if (gain(*candidate) == 0 || !MayStopFor(job, own, *candidate, tenants, lost)) continue;
    lost += candidate->devices;
    victims.push_back(candidate);
    missing -= gain(*candidate);
  }
  if (missing > 0) return std::nullopt;
  // Some may not be needed beside larger ones behind them; the dearest are spared first.
  for (size_t i = victims.size(); i-- > 0;) {
    if (gain(*victims[i]) > -missing) continue;
    missing += gain(*victims[i]);
    victims.erase(victims.begin() + static_cast<int64_t>(i));
  }
  return victims;
}

// What has to stop on a node for the job: the least urgent, then the newest, which has least to lose. None if that is
// not enough.
std::optional<std::vector<const Job*>> VictimsFor(const Job& job, bool own, const NodeView& view,
                                                  const Tenants& tenants) {
  std::vector<const Job*> candidates;
  for (const Release& release : view.releases) {
    const Job* other = release.preemptible;
    if (other != nullptr && MayStopFor(job, own, *other, tenants)) candidates.push_back(other);
  }
  std::sort(candidates.begin(), candidates.end(), [](const Job* a, const Job* b) {
    return std::tie(b->service_class, a->priority, b->attempt_start, b->number) <
           std::tie(a->service_class, b->priority, a->attempt_start, a->number);
  });
  if (auto victims = EnoughOf(candidates, job, own, view, tenants)) return victims;
  // A small one may leave its tenant too little for a large one to go that would have been enough alone.
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Job* a, const Job* b) { return a->devices > b->devices; });
  return EnoughOf(candidates, job, own, view, tenants);
}

// A node that will have room for a job, once what has to stop for it has stopped.
struct Room {
  NodeView* view;
  std::vector<const Job*> victims;
};

// The one where the least urgent stop, and the fewest.
std::optional<Room> CheapestRoom(const Job& job, bool own, Snapshot& snapshot,
                                 const std::optional<Reservation>& reservation) {
  std::optional<Room> best;
  const auto cost = [](const Room& room) {
    ServiceClass most_urgent = ServiceClass::kBackground;
    int devices = 0;
    for (const Job* victim : room.victims) {
      most_urgent = std::min(most_urgent, victim->service_class);
      devices += victim->devices;
    }
    return std::make_tuple(-static_cast<int>(most_urgent), devices, room.victims.size(), room.view->node->id);
  };
  for (NodeView& view : snapshot.nodes) {
    if (!CouldRun(job, *view.node) || !LeavesReservation(job, view, reservation, snapshot.now)) continue;
    std::optional<std::vector<const Job*>> victims = VictimsFor(job, own, view, snapshot.tenants);
    if (!victims) continue;
    Room room{&view, *std::move(victims)};
    if (!best || cost(room) < cost(*best)) best = std::move(room);
  }
  return best;
}

// Keeps the room for the job: nothing that comes behind it may have it.
void Promise(const Room& room, const Job& job, Snapshot& snapshot) {
  NodeView& view = *room.view;
  for (const Job* victim : room.victims) {
    view.stopping += victim->devices;
    snapshot.tenants[victim->tenant].kept_devices -= victim->devices;
    view.releases.erase(std::find_if(view.releases.begin(), view.releases.end(),
                                     [&](const Release& release) { return release.preemptible == victim; }));
  }
  const int from_stopping = std::min(view.stopping, job.devices);
  view.stopping -= from_stopping;
  // Fewer may be free of that size than counted, if what stops gives back others.
  TakeFree(job, std::min(job.devices - from_stopping, FreeFor(job, view)), view);
  AddRelease(job, snapshot.now + ExpectedDuration(job), view);
}

// `devices`: those of the tenant that the job adds to, at once or when room is made.
void Charge(TenantView& tenant, const Job& job, int& devices) {
  devices += job.devices;
  tenant.running_devices += job.devices;
  tenant.usage += absl::ToDoubleSeconds(ExpectedDuration(job)) * job.devices;
}

NodeView& ViewOf(const std::string& node, Snapshot& snapshot) {
  return *std::find_if(snapshot.nodes.begin(), snapshot.nodes.end(),
                       [&](const NodeView& view) { return view.node->id == node; });
}

// Carries a decision out in a snapshot.
void StartIn(const Decision& decision, double slower, Snapshot& snapshot) {
  NodeView& view = ViewOf(decision.node, snapshot);
  for (const int device : decision.devices) view.free.erase(std::find(view.free.begin(), view.free.end(), device));
  AddRelease(*decision.job, snapshot.now + ExpectedDuration(*decision.job) * slower, view);
  TenantView& tenant = snapshot.tenants[decision.job->tenant];
  Charge(tenant, *decision.job, tenant.kept_devices);
  for (auto& waiting : snapshot.waiting) {
    for (auto& [id, jobs] : waiting) jobs.erase(std::remove(jobs.begin(), jobs.end(), decision.job), jobs.end());
  }
}

// What was preempted may come back later than this says.
void StopIn(const Job& victim, NodeView& view, absl::Time now) {
  for (Release& release : view.releases) {
    if (release.preemptible != &victim) continue;
    release.end = now;
    release.preemptible = nullptr;
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

bool HasGuarantees(const Snapshot& snapshot) {
  return std::any_of(snapshot.tenants.begin(), snapshot.tenants.end(),
                     [](const auto& tenant) { return tenant.second.guaranteed_devices > 0; });
}

// One look at everything that waits. What is decided for a job changes what those behind it can have.
class Cycle {
 public:
  using Jobs = std::set<const Job*>;

  // `passed_over`: jobs that are known to get nothing, and hold up none within the guarantee of their tenant.
  Cycle(Snapshot snapshot, const Jobs& passed_over) : snapshot_(std::move(snapshot)), passed_over_(passed_over) {}

  // Jobs within the guarantee of their tenant come first, so that nobody borrows again what was taken back for them.
  // One that would go beyond it waits among the others. It holds up none behind it that is within, unless that is less
  // urgent: what it stops of its own tenant would else come before it, and have the same devices again.
  std::vector<Decision> Run() {
    for (const bool own : {true, false}) {
      if (own && !HasGuarantees(snapshot_)) continue;
      for (const auto& waiting : snapshot_.waiting) LookAt(waiting, own);
    }
    return std::move(decisions_);
  }
  // Of the jobs beyond the guarantee that held up others within it, those that got nothing all the same.
  Jobs HeldUpForNothing(const std::vector<Decision>& decisions) const {
    Jobs jobs;
    for (const Decision& decision : decisions) {
      const bool got_nothing = decision.wait != Wait::kNone && decision.wait != Wait::kMakingRoom;
      if (got_nothing && beyond_.count(decision.job) > 0 && held_up_.count(decision.job->tenant) > 0)
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
        decisions_.push_back(DecisionFor(*job, own));
      }
      order.Return();
    }
  }

  bool IsAtLimit(const Job& job) {
    const TenantView& tenant = snapshot_.tenants[job.tenant];
    return tenant.max_devices > 0 && tenant.running_devices + job.devices > tenant.max_devices;
  }
  bool IsOwn(const Job& job) { return snapshot_.tenants[job.tenant].Guarantees(job.devices) && !IsAtLimit(job); }
  // Whether the job is within the guarantee of its tenant, and behind nothing more urgent beyond it. Requires that
  // classes are looked at from the most urgent on.
  bool ComesFirst(const Job& job) {
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
    if (IsAtLimit(job)) {
      decision.wait = Wait::kTenantLimit;
    } else if (!own && awaited_.count(job.tenant) > 0) {
      // What the tenant borrowed now would be its own when the room is there, and the job that waits for it no more.
      decision.wait = WhyNot(job, snapshot_.nodes);
    } else if (NodeView* view = BestNode(job, snapshot_.nodes, reservation_, snapshot_.now)) {
      if (reservation_ && reservation_->node == view && snapshot_.now + ExpectedDuration(job) > reservation_->start) {
        reservation_->spare -= job.devices;
      }
      Take(*view, job, snapshot_.now, decision);
      Charge(tenant, job, tenant.kept_devices);
    } else if (const auto room = CheapestRoom(job, own, snapshot_, reservation_)) {
      Promise(*room, job, snapshot_);
      Charge(tenant, job, tenant.promised_devices);
      if (own) awaited_.insert(job.tenant);
      decision.wait = Wait::kMakingRoom;
      decision.node = room->view->node->id;
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

  Snapshot snapshot_;
  const Jobs& passed_over_;
  std::optional<Reservation> reservation_;                  // of the first that can have nothing
  Jobs decided_;                                            // within the guarantee of their tenants
  Jobs beyond_;                                             // those that may hold up less urgent ones within it
  std::map<std::string, ServiceClass> most_urgent_beyond_;  // by tenant, of those
  std::set<std::string> held_up_;                           // tenants of which a job is held up so
  std::set<std::string> awaited_;                           // tenants for whose own room is made
  std::vector<Decision> decisions_;
};

}  // namespace

int64_t MemoryFor(const Job& job, const Node& node) { return node.gpus ? job.gpu_memory_bytes : job.cpu_memory_bytes; }

bool HasLabels(const Node& node, const Job& job) {
  if (job.node_selector.empty()) return true;
  for (const absl::string_view wanted : absl::StrSplit(job.node_selector, ',')) {
    const std::pair<std::string, std::string> label = absl::StrSplit(wanted, absl::MaxSplits('=', 1));
    const auto found = node.labels.find(label.first);
    if (found == node.labels.end() || found->second != label.second) return false;
  }
  return true;
}

bool CouldRun(const Job& job, const Node& node) {
  if (!HasLabels(node, job) || node.devices < job.devices) return false;
  if (node.shares > 1 && job.devices > 1) return false;  // two parts of one GPU are no two GPUs
  int large = 0;
  for (int device = 0; device < node.devices; ++device) large += IsLargeEnough(device, node, job) ? 1 : 0;
  return large >= job.devices;
}

double Tenant::UsageAt(absl::Time now) const {
  if (usage == 0 || now <= usage_time) return usage;
  return usage * std::exp2(-absl::FDivDuration(now - usage_time, kUsageHalfLife));
}

void Tenant::Charge(double device_seconds, absl::Time now) {
  usage = std::max(0.0, UsageAt(now) + device_seconds);
  usage_time = now;
}

absl::Duration ExpectedDuration(const Job& job) {
  return job.estimate > absl::ZeroDuration() ? job.estimate : kUnknownDuration;
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
// is the last.
std::vector<Decision> Decide(Snapshot snapshot) {
  Cycle::Jobs passed_over;
  if (!HasGuarantees(snapshot)) return Cycle(std::move(snapshot), passed_over).Run();
  while (true) {
    Cycle cycle(snapshot, passed_over);
    std::vector<Decision> decisions = cycle.Run();
    const Cycle::Jobs for_nothing = cycle.HeldUpForNothing(decisions);
    if (for_nothing.empty()) return decisions;
    passed_over.insert(for_nothing.begin(), for_nothing.end());
  }
}

std::unique_ptr<DetachedSnapshot> Detach(Snapshot snapshot) {
  auto detached = std::make_unique<DetachedSnapshot>();
  for (NodeView& view : snapshot.nodes) {
    view.node = &detached->nodes.emplace_back(*view.node);
    for (Release& release : view.releases) {
      if (release.preemptible != nullptr) release.preemptible = &detached->jobs.emplace_back(*release.preemptible);
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

namespace {

// InfiniteFuture if the job never fits, or is not in the snapshot.
absl::Time StartOf(int64_t number, Snapshot snapshot, double slower, int64_t& ahead) {
  for (NodeView& view : snapshot.nodes) {
    for (Release& release : view.releases)
      release.end = snapshot.now + std::max(absl::ZeroDuration(), release.end - snapshot.now) * slower;
    if (view.stopping > 0) view.releases.push_back({snapshot.now, std::exchange(view.stopping, 0)});
  }
  while (true) {
    for (const Decision& decision : Decide(snapshot)) {
      for (const Job* victim : decision.preempted) StopIn(*victim, ViewOf(decision.node, snapshot), snapshot.now);
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

Forecast ForecastOf(int64_t number, const Snapshot& snapshot) {
  Forecast forecast;
  int64_t ignored = 0;
  forecast.start = StartOf(number, snapshot, 1.0, forecast.ahead);
  forecast.late_start = StartOf(number, snapshot, kLateFactor, ignored);
  return forecast;
}

}  // namespace luthier
