#include "server/core/policy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
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

void Take(NodeView& view, const Job& job, absl::Time now, Decision& decision) {
  decision.node = view.node->id;
  decision.devices = TakeFree(job, job.devices, view);
  view.releases.push_back({now + ExpectedDuration(job), job.devices});
}

// What has to stop on a node for the job, besides what stops already: the least urgent, then the newest, which has
// least to lose. None if that is not enough.
std::optional<std::vector<const Job*>> VictimsFor(const Job& job, const NodeView& view) {
  std::vector<const Job*> candidates;
  for (const Release& release : view.releases) {
    const Job* other = release.preemptible;
    if (other != nullptr && other->service_class > job.service_class) candidates.push_back(other);
  }
  std::sort(candidates.begin(), candidates.end(), [](const Job* a, const Job* b) {
    return std::tie(b->service_class, a->priority, b->attempt_start, b->number) <
           std::tie(a->service_class, b->priority, a->attempt_start, a->number);
  });
  const auto gain = [&](const Job& victim) {
    return view.node->memory.empty() ? victim.devices : CountLargeEnough(victim.held, *view.node, job);
  };
  int missing = job.devices - FreeFor(job, view) - view.stopping;
  std::vector<const Job*> victims;
  for (const Job* candidate : candidates) {
    if (missing <= 0) break;
    if (gain(*candidate) == 0) continue;
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

// A node that will have room for a job, once what has to stop for it has stopped.
struct Room {
  NodeView* view;
  std::vector<const Job*> victims;
};

// The one where the least urgent stop, and the fewest.
std::optional<Room> CheapestRoom(const Job& job, std::vector<NodeView>& nodes,
                                 const std::optional<Reservation>& reservation, absl::Time now) {
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
  for (NodeView& view : nodes) {
    if (!CouldRun(job, *view.node) || !LeavesReservation(job, view, reservation, now)) continue;
    std::optional<std::vector<const Job*>> victims = VictimsFor(job, view);
    if (!victims) continue;
    Room room{&view, *std::move(victims)};
    if (!best || cost(room) < cost(*best)) best = std::move(room);
  }
  return best;
}

// Keeps the room for the job: nothing that comes behind it may have it.
void Promise(const Room& room, const Job& job, absl::Time now) {
  NodeView& view = *room.view;
  for (const Job* victim : room.victims) {
    view.stopping += victim->devices;
    view.releases.erase(std::find_if(view.releases.begin(), view.releases.end(),
                                     [&](const Release& release) { return release.preemptible == victim; }));
  }
  const int from_stopping = std::min(view.stopping, job.devices);
  view.stopping -= from_stopping;
  // Fewer may be free of that size than counted, if what stops gives back others.
  TakeFree(job, std::min(job.devices - from_stopping, FreeFor(job, view)), view);
  view.releases.push_back({now + ExpectedDuration(job), job.devices});
}

void Charge(TenantView& tenant, const Job& job) {
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
  view.releases.push_back({snapshot.now + ExpectedDuration(*decision.job) * slower, decision.job->devices});
  Charge(snapshot.tenants[decision.job->tenant], *decision.job);
  for (auto& waiting : snapshot.waiting) {
    for (auto& [id, jobs] : waiting) jobs.erase(std::remove(jobs.begin(), jobs.end(), decision.job), jobs.end());
  }
}

// What was preempted may come back later than this says.
void StopIn(const Job& victim, NodeView& view, absl::Time now) {
  for (Release& release : view.releases) {
    if (release.preemptible == &victim) release = {now, release.devices};
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
      for (int i = 0; i < release->devices; ++i) view.free.push_back(view.free.empty() ? 0 : view.free.back() + 1);
      release = view.releases.erase(release);
    }
  }
}

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

std::vector<Decision> Decide(Snapshot snapshot) {
  std::vector<Decision> decisions;
  std::optional<Reservation> reservation;
  for (const auto& waiting : snapshot.waiting) {
    FairOrder order(waiting, snapshot.tenants);
    while (const Job* job = order.Next()) {
      Decision decision{job};
      TenantView& tenant = snapshot.tenants[job->tenant];
      if (tenant.max_devices > 0 && tenant.running_devices + job->devices > tenant.max_devices) {
        decision.wait = Wait::kTenantLimit;
      } else if (NodeView* view = BestNode(*job, snapshot.nodes, reservation, snapshot.now)) {
        if (reservation && reservation->node == view && snapshot.now + ExpectedDuration(*job) > reservation->start) {
          reservation->spare -= job->devices;
        }
        Take(*view, *job, snapshot.now, decision);
        Charge(tenant, *job);
      } else if (const auto room = CheapestRoom(*job, snapshot.nodes, reservation, snapshot.now)) {
        Promise(*room, *job, snapshot.now);
        Charge(tenant, *job);
        decision.wait = Wait::kMakingRoom;
        decision.node = room->view->node->id;
        decision.preempted = room->victims;
      } else {
        decision.wait = WhyNot(*job, snapshot.nodes);
        if (!reservation) {
          reservation = Reserve(*job, snapshot.nodes, snapshot.now);
          if (reservation) decision.not_before = reservation->start;
        }
      }
      decisions.push_back(std::move(decision));
      order.Return();
    }
  }
  return decisions;
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
