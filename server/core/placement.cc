#include "server/core/placement.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace luthier {
namespace {

// A node that lost attempts of the same job so often is avoided, even if the job's checkpoints lie there.
constexpr int kLostHereLimit = 2;
// Sets of nodes that are tried in the place of one that does not meet. Each try leaves out a node, of which few are cut
// off; a cluster that falls to pieces must not make a decision long.
constexpr int kMostTries = 32;

bool IsLargeEnough(int device, const Node& node, const Job& job) {
  const auto index = static_cast<size_t>(device);
  return index >= node.memory.size() || node.memory[index] >= MemoryFor(job, node);
}

// The `count` that come first of those with GPUs, or of those without: whichever `better` prefers. Empty if there are
// fewer of either. An item is about its `view`; the items change places.
template <typename Item, typename Before, typename Better>
std::vector<Item> FirstOfOneKind(std::vector<Item>& items, int count, Before before, Better better) {
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

// A node that a job could start on at once.
struct Candidate {
  NodeView* view;
  int preference;  // the lowest first
  bool idles_gpus;
};

bool IsBetter(const Candidate& a, const Candidate& b) {
  return std::forward_as_tuple(a.preference, a.idles_gpus, a.view->free.size(), a.view->node->id) <
         std::forward_as_tuple(b.preference, b.idles_gpus, b.view->free.size(), b.view->node->id);
}

int TimesMissed(const Node& node) {
  int times = 0;
  for (const auto& [other, missed] : node.missed) times += missed.times;
  return times;
}

// How often it did not find one of them.
int TimesMissedOf(const Views& views, const Node& node) {
  int times = 0;
  if (node.missed.empty()) return times;
  for (const NodeView* other : views) {
    const auto found = node.missed.find(other->node->id);
    times += found == node.missed.end() ? 0 : found->second.times;
  }
  return times;
}

// How often two of them did not find each other; each two count twice.
int MissedAmong(const Views& views) {
  int times = 0;
  for (const NodeView* view : views) times += TimesMissedOf(views, *view->node);
  return times;
}

// The best of which no two missed each other, or those that did least often. While some of the best did, that one of
// them is left out which missed most of all nodes, of several the last.
Views BestThatMeet(std::vector<Candidate> candidates, int count) {
  Views best;
  for (int tries = 0, fewest = std::numeric_limits<int>::max(); tries < kMostTries; ++tries) {
    Views views;
    for (const Candidate& candidate : FirstOfOneKind(candidates, count, IsBetter, [](const auto& a, const auto& b) {
           return IsBetter(a.front(), b.front());
         })) {
      views.push_back(candidate.view);
    }
    if (views.empty()) break;
    const int missed = MissedAmong(views);
    if (missed < fewest) best = views;
    fewest = std::min(fewest, missed);
    if (fewest == 0) break;
    const auto badness = [&](const NodeView* view) {
      return TimesMissedOf(views, *view->node) == 0 ? 0 : TimesMissed(*view->node);
    };
    const NodeView* worst = *std::max_element(
        views.rbegin(), views.rend(), [&](const NodeView* a, const NodeView* b) { return badness(a) < badness(b); });
    std::erase_if(candidates, [&](const Candidate& candidate) { return candidate.view == worst; });
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

}  // namespace

int CountLargeEnough(const std::vector<int>& devices, const Node& node, const Job& job) {
  return static_cast<int>(
      std::count_if(devices.begin(), devices.end(), [&](int device) { return IsLargeEnough(device, node, job); }));
}

int FreeFor(const Job& job, const NodeView& view) { return CountLargeEnough(view.free, *view.node, job); }

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
  const std::vector<Opening> first = FirstOfOneKind(
      openings, job.nodes, earlier, [&](const auto& a, const auto& b) { return earlier(a.back(), b.back()); });
  if (first.empty()) return std::nullopt;
  Reservation reservation{{}, first.back().time};
  for (const Opening& opening : first) {
    reservation.nodes.push_back({opening.view, FreeAt(reservation.start, *opening.view, job) - job.devices});
  }
  return reservation;
}

bool LeavesReservation(const Job& job, const NodeView& view, const std::optional<Reservation>& reservation,
                       absl::Time end) {
  if (!reservation || end <= reservation->start) return true;
  return std::all_of(reservation->nodes.begin(), reservation->nodes.end(),
                     [&](const Reservation::Kept& kept) { return kept.view != &view || job.devices <= kept.spare; });
}

Views BestNodes(const Job& job, std::vector<NodeView>& nodes, const std::optional<Reservation>& reservation,
                absl::Time end) {
  std::vector<Candidate> candidates;
  for (NodeView& view : nodes) {
    if (!CouldRun(job, *view.node) || FreeFor(job, view) < job.devices) continue;
    if (!LeavesReservation(job, view, reservation, end)) continue;
    const std::string& id = view.node->id;
    const auto losses = std::count(job.lost_on.begin(), job.lost_on.end(), id);
    const bool crashed = std::count(job.crashed_on.begin(), job.crashed_on.end(), id) > 0;
    const int avoided = losses >= kLostHereLimit ? static_cast<int>(losses) : crashed ? 1 : 0;
    const bool goes_back = id == job.node && losses < kLostHereLimit;
    candidates.push_back({&view, goes_back ? 0 : 1 + avoided, view.node->gpus && ComputesOnCpus(job)});
  }
  return BestThatMeet(std::move(candidates), job.nodes);
}

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

void AddRelease(const Job& job, absl::Time end, NodeView& view) {
  view.releases.push_back({end, job.devices, nullptr, job.tenant});
}

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

}  // namespace luthier
