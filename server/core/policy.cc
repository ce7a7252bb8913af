#include "server/core/policy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_split.h"
#include "server/core/node_kinds.h"

namespace luthier {
namespace {

constexpr absl::Duration kUsageHalfLife = absl::Hours(24);
constexpr absl::Duration kPriorityPoint = absl::Hours(1);
// A node that lost the same job so often is avoided, though the job's checkpoints lie there.
constexpr int kLostHereLimit = 2;

// One in ten jobs takes more than this many times as long as expected.
constexpr double kLateFactor = 1.8;

// The nodes that are kept for the first job that fits nowhere.
struct Reservation {
  struct Kept {
    const NodeView* view;
    int spare;  // devices that are free at `start` beyond what the job needs
  };
  std::vector<Kept> nodes;
  absl::Time start;
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

using Views = std::vector<NodeView*>;

// The `count` that come first of those with GPUs, or of those without: whichever `better` prefers. Empty if there are
// fewer of either. An item is about its `view`.
template <typename Item, typename Before, typename Better>
std::vector<Item> FirstOfOneKind(std::vector<Item> items, int count, Before before, Better better) {
  const auto cpus = std::partition(items.begin(), items.end(), [](const Item& item) { return item.view->node->gpus; });
  std::vector<Item> best;
  for (const auto& [begin, end] : {std::pair(items.begin(), cpus), std::pair(cpus, items.end())}) {
    if (end - begin < count) continue;
    std::partial_sort(begin, begin + count, end, before);
    std::vector<Item> first(begin, begin + count);
    if (best.empty() || better(first, best)) best = std::move(first);
  }
  return best;
}

// When there is room for the job on a node; InfiniteFuture: nobody can say. Releases do not say which devices they are:
// on a node whose devices differ, this may be early.
absl::Time RoomAt(const NodeView& view, const Job& job, absl::Time now) {
  int missing = job.devices - FreeFor(job, view) - view.stopping;
  if (missing <= 0) return now;
  std::vector<std::pair<absl::Time, int>> releases;
  for (const Release& release : view.releases) releases.emplace_back(release.end, release.devices);
  std::sort(releases.begin(), releases.end());
  for (const auto& [end, devices] : releases) {
    missing -= devices;
    if (missing <= 0) return std::max(now, end);
  }
  return absl::InfiniteFuture();
}

// Devices that the job could have at `time` if nothing else starts.
int FreeAt(absl::Time time, const NodeView& view, const Job& job) {
  int free = FreeFor(job, view) + view.stopping;
  for (const Release& release : view.releases) free += release.end <= time ? release.devices : 0;
  return free;
}

// The nodes where the job can start first: that is when the last of them has room. None if it never can.
std::optional<Reservation> Reserve(const Job& job, const std::vector<NodeView>& nodes, absl::Time now) {
  struct Opening {
    const NodeView* view;
    absl::Time time;
  };
  std::vector<Opening> openings;
  for (const NodeView& view : nodes) {
    if (!CouldRun(job, *view.node)) continue;
    const absl::Time time = RoomAt(view, job, now);
    if (time != absl::InfiniteFuture()) openings.push_back({&view, time});
  }
  const auto earlier = [](const Opening& a, const Opening& b) {
    return std::tie(a.time, a.view->node->id) < std::tie(b.time, b.view->node->id);
  };
  const std::vector<Opening> first =
      FirstOfOneKind(std::move(openings), job.nodes, earlier,
                     [&](const auto& a, const auto& b) { return earlier(a.back(), b.back()); });
  if (first.empty()) return std::nullopt;
  Reservation reservation{{}, first.back().time};
  for (const Opening& opening : first) {
    reservation.nodes.push_back({opening.view, FreeAt(reservation.start, *opening.view, job) - job.devices});
  }
  return reservation;
}

// Whether the job may take devices of a node without delaying the reservation.
bool LeavesReservation(const Job& job, const NodeView& view, const std::optional<Reservation>& reservation,
                       absl::Time now) {
  if (!reservation || now + ExpectedDuration(job) <= reservation->start) return true;
  return std::all_of(reservation->nodes.begin(), reservation->nodes.end(),
                     [&](const Reservation::Kept& kept) { return kept.view != &view || job.devices <= kept.spare; });
}

// The nodes that fit best, so that large holes stay for large jobs, and GPUs for those that compute on them; the job's
// last node before any other, because its checkpoints lie there, and those where its trainer died after all others. The
// first is to lead. Empty if there are not enough.
Views BestNodes(const Job& job, std::vector<NodeView>& nodes, const std::optional<Reservation>& reservation,
                absl::Time now) {
  struct Candidate {
    NodeView* view;
    int preference;
    bool idles_gpus;
  };
  std::vector<Candidate> candidates;
  for (NodeView& view : nodes) {
    if (!CouldRun(job, *view.node) || FreeFor(job, view) < job.devices) continue;
    if (!LeavesReservation(job, view, reservation, now)) continue;
    const bool last = view.node->id == job.node;
    const bool goes_back = last && job.lost_here < kLostHereLimit;
    const bool avoids = last || std::count(job.crashed_on.begin(), job.crashed_on.end(), view.node->id) > 0;
    candidates.push_back({&view, goes_back ? 0 : avoids ? 2 : 1, view.node->gpus && ComputesOnCpus(job)});
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return std::forward_as_tuple(a.preference, a.idles_gpus, a.view->free.size(), a.view->node->id) <
           std::forward_as_tuple(b.preference, b.idles_gpus, b.view->free.size(), b.view->node->id);
  };
  Views best;
  for (const Candidate& candidate :
       FirstOfOneKind(std::move(candidates), job.nodes, before,
                      [&](const auto& a, const auto& b) { return before(a.front(), b.front()); })) {
    best.push_back(candidate.view);
  }
  return best;
}

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

// The first one leads.
void AddPlace(Place place, Decision& decision) {
  if (!decision.node.empty()) return decision.others.push_back(std::move(place));
  decision.node = std::move(place.node);
  decision.devices = std::move(place.devices);
}

void Take(const Views& views, const Job& job, absl::Time now, Decision& decision) {
  for (NodeView* view : views) {
    AddPlace({view->node->id, TakeFree(job, job.devices, *view)}, decision);
    AddRelease(job, now + ExpectedDuration(job), *view);
  }
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
  return theirs == tenants.end() || theirs->second.Borrows(taken + AllDevices(other));
}

// Nodes that will have room for a job, once what has to stop for it has stopped.
struct Room {
  Views views;                      // the leading one first
  std::vector<const Job*> victims;  // each once, on however many of the nodes it runs
};

// Devices of use to the job that an attempt gives back on a node when it stops.
int Gain(const Job& victim, const NodeView& view, const Job& job) {
  const std::vector<int>* held = HeldOn(victim, view.node->id);
  return held == nullptr ? 0 : CountLargeEnough(*held, *view.node, job);
}

// Devices that the job still lacks on a node when all victims have stopped; 0 or less: none.
int Missing(const std::vector<const Job*>& victims, const NodeView& view, const Job& job) {
  int missing = job.devices - FreeFor(job, view) - view.stopping;
  for (const Job* victim : victims) missing -= Gain(*victim, view, job);
  return missing;
}

// The room with one node more, on which as many of the candidates stop, in their order, as are needed besides what
// stops already. None if that is not enough.
std::optional<Room> EnoughOf(const std::vector<const Job*>& candidates, const Job& job, bool own, Room room,
                             NodeView& view, const Tenants& tenants) {
  std::map<std::string, int> taken;  // devices, by tenant
  for (const Job* victim : room.victims) taken[victim->tenant] += AllDevices(*victim);
  int missing = Missing(room.victims, view, job);
  for (const Job* candidate : candidates) {
    if (missing <= 0) break;
    int& lost = taken[candidate->tenant];
    const int gain = Gain(*candidate, view, job);
    if (gain == 0 || !MayStopFor(job, own, *candidate, tenants, lost)) continue;
    lost += AllDevices(*candidate);
    room.victims.push_back(candidate);
    missing -= gain;
  }
  if (missing > 0) return std::nullopt;
  room.views.push_back(&view);
  // Some may not be needed beside larger ones behind them; the dearest are spared first.
  for (size_t i = room.victims.size(); i-- > 0;) {
    const bool needed = std::any_of(room.views.begin(), room.views.end(), [&](const NodeView* other) {
      return Missing(room.victims, *other, job) + Gain(*room.victims[i], *other, job) > 0;
    });
    if (!needed) room.victims.erase(room.victims.begin() + static_cast<int64_t>(i));
  }
  return room;
}

// The room with one node more, where the least urgent stop, then the newest, which have least to lose. None if that is
// not enough.
std::optional<Room> WithNode(const Job& job, bool own, const Room& room, NodeView& view, const Tenants& tenants) {
  std::vector<const Job*> candidates;
  for (const Release& release : view.releases) {
    const Job* other = release.preemptible;
    if (other == nullptr || !MayStopFor(job, own, *other, tenants)) continue;
    if (std::count(room.victims.begin(), room.victims.end(), other) == 0) candidates.push_back(other);
  }
  std::sort(candidates.begin(), candidates.end(), [](const Job* a, const Job* b) {
    return std::tie(b->service_class, a->priority, b->attempt_start, b->number) <
           std::tie(a->service_class, b->priority, a->attempt_start, a->number);
  });
  if (auto larger = EnoughOf(candidates, job, own, room, view, tenants)) return larger;
  // A small one may leave its tenant too little for a large one to go that would have been enough alone.
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Job* a, const Job* b) { return AllDevices(*a) > AllDevices(*b); });
  return EnoughOf(candidates, job, own, room, view, tenants);
}

// First the least urgent, then the fewest.
auto CostOf(const Room& room) {
  ServiceClass most_urgent = ServiceClass::kBackground;
  int devices = 0;
  for (const Job* victim : room.victims) {
    most_urgent = std::min(most_urgent, victim->service_class);
    devices += AllDevices(*victim);
  }
  return std::make_tuple(-static_cast<int>(most_urgent), devices, room.victims.size(), room.views.back()->node->id);
}

// As many of the nodes as the job needs, one after the other that which costs least beside those before it. That may
// miss one attempt that would make room on several of them alone: `widest_first` begins where such a one stops.
std::optional<Room> RoomOn(const Views& views, const Job& job, bool own, bool widest_first, const Tenants& tenants) {
  const auto cost = [&](const Room& room) {
    int most_nodes = 1;
    for (const Job* victim : room.victims) most_nodes = std::max(most_nodes, victim->nodes);
    return std::make_pair(widest_first ? -most_nodes : 0, CostOf(room));
  };
  Room room;
  while (static_cast<int>(room.views.size()) < job.nodes) {
    std::optional<Room> best;
    for (NodeView* view : views) {
      if (std::count(room.views.begin(), room.views.end(), view) > 0) continue;
      std::optional<Room> larger = WithNode(job, own, room, *view, tenants);
      if (larger && (!best || cost(*larger) < cost(*best))) best = std::move(larger);
    }
    if (!best) return std::nullopt;
    room = *std::move(best);
  }
  return room;
}

// The room that costs least, on nodes with GPUs or on nodes without.
std::optional<Room> CheapestRoom(const Job& job, bool own, Snapshot& snapshot,
                                 const std::optional<Reservation>& reservation) {
  std::optional<Room> best;
  for (const bool gpus : {true, false}) {
    Views views;  // where enough could stop if it were the only one
    for (NodeView& view : snapshot.nodes) {
      if (view.node->gpus != gpus || !CouldRun(job, *view.node)) continue;
      if (!LeavesReservation(job, view, reservation, snapshot.now)) continue;
      if (WithNode(job, own, {}, view, snapshot.tenants)) views.push_back(&view);
    }
    if (static_cast<int>(views.size()) < job.nodes) continue;
    for (const bool widest_first : {false, true}) {
      if (widest_first && job.nodes == 1) continue;
      std::optional<Room> room = RoomOn(views, job, own, widest_first, snapshot.tenants);
      if (room && (!best || CostOf(*room) < CostOf(*best))) best = std::move(room);
    }
  }
  return best;
}

// What a release becomes when its attempt was told to stop: no release, but devices that are free at any moment.
void Stop(const std::vector<const Job*>& victims, NodeView& view) {
  for (auto release = view.releases.begin(); release != view.releases.end();) {
    if (release->preemptible == nullptr || std::count(victims.begin(), victims.end(), release->preemptible) == 0) {
      ++release;
      continue;
    }
    view.stopping += release->devices;
    release = view.releases.erase(release);
  }
}

// Keeps the room for the job: nothing that comes behind it may have it.
void Promise(const Room& room, const Job& job, Snapshot& snapshot) {
  for (const Job* victim : room.victims) snapshot.tenants[victim->tenant].kept_devices -= AllDevices(*victim);
  for (NodeView& view : snapshot.nodes) Stop(room.victims, view);
  for (NodeView* view : room.views) {
    const int from_stopping = std::min(view->stopping, job.devices);
    view->stopping -= from_stopping;
    // Fewer may be free of that size than counted, if what stops gives back others.
    TakeFree(job, std::min(job.devices - from_stopping, FreeFor(job, *view)), *view);
    AddRelease(job, snapshot.now + ExpectedDuration(job), *view);
  }
}

// `devices`: those of the tenant that the job adds to, at once or when room is made.
void Charge(TenantView& tenant, const Job& job, int& devices) {
  devices += AllDevices(job);
  tenant.running_devices += AllDevices(job);
  tenant.usage += absl::ToDoubleSeconds(ExpectedDuration(job)) * AllDevices(job);
}

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
  Charge(tenant, *decision.job, tenant.kept_devices);
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
    return tenant.max_devices > 0 && tenant.running_devices + AllDevices(job) > tenant.max_devices;
  }
  bool IsOwn(const Job& job) { return snapshot_.tenants[job.tenant].Guarantees(AllDevices(job)) && !IsAtLimit(job); }
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
    } else if (const Views views = BestNodes(job, snapshot_.nodes, reservation_, snapshot_.now); !views.empty()) {
      TakeSpare(views, job);
      Take(views, job, snapshot_.now, decision);
      Charge(tenant, job, tenant.kept_devices);
    } else if (const auto room = CheapestRoom(job, own, snapshot_, reservation_)) {
      TakeSpare(room->views, job);
      Promise(*room, job, snapshot_);
      Charge(tenant, job, tenant.promised_devices);
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
  void TakeSpare(const Views& views, const Job& job) {
    if (!reservation_ || snapshot_.now + ExpectedDuration(job) <= reservation_->start) return;
    for (Reservation::Kept& kept : reservation_->nodes) {
      if (std::count(views.begin(), views.end(), kept.view) > 0) kept.spare -= job.devices;
    }
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

bool ComputesOnCpus(const Job& job) { return job.cpu_memory_bytes > 0 && job.gpu_memory_bytes == 0; }

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

bool HasDevicesFor(const Job& job, const Node& node) {
  if (!HasLabels(node, job) || node.devices < job.devices) return false;
  if (node.shares > 1 && job.devices > 1) return false;  // two parts of one GPU are no two GPUs
  if (ComputesOnCpus(job) && node.main_memory > 0 && job.cpu_memory_bytes > node.main_memory) return false;
  int large = 0;
  for (int device = 0; device < node.devices; ++device) large += IsLargeEnough(device, node, job) ? 1 : 0;
  return large >= job.devices;
}

// A part of a GPU is none of a gang: what it shares the GPU with would keep all other nodes waiting.
bool CouldRun(const Job& job, const Node& node) {
  return HasDevicesFor(job, node) && (job.nodes == 1 || (!node.gang_address.empty() && node.shares == 1));
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
// is the last. Each one passes over jobs more, all of those at once, and none twice: so there are no more cycles than
// jobs beyond a guarantee, of the few hundred that a snapshot has.
std::vector<Decision> Decide(Snapshot snapshot) {
  Cycle::Jobs passed_over;
  if (!HasGuarantees(snapshot)) return Cycle(std::move(snapshot), passed_over).Run(/*guarantees=*/false);
  while (true) {
    Cycle cycle(snapshot, passed_over);
    std::vector<Decision> decisions = cycle.Run(/*guarantees=*/true);
    const Cycle::Jobs for_nothing = cycle.HeldUpForNothing(decisions);
    if (for_nothing.empty()) return decisions;
    passed_over.insert(for_nothing.begin(), for_nothing.end());
  }
}

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

Forecast ForecastOf(int64_t number, const Snapshot& snapshot) {
  Forecast forecast;
  int64_t ignored = 0;
  forecast.start = StartOf(number, snapshot, 1.0, forecast.ahead);
  forecast.late_start = StartOf(number, snapshot, kLateFactor, ignored);
  return forecast;
}

}  // namespace luthier
