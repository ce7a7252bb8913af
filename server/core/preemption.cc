#include "server/core/preemption.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "absl/strings/string_view.h"

namespace luthier {
namespace {

using Tenants = std::map<std::string, TenantView>;

// Whether an attempt may be stopped for the job, when its tenant loses `taken` devices already. What another tenant has
// within its guarantee is never taken: the two would stop one another in turn.
bool MayStopFor(const Job& job, bool own, const Job& other, const Tenants& tenants, int taken = 0) {
  const bool more_urgent = other.service_class > job.service_class;
  if (other.tenant == job.tenant) return more_urgent;
  if (!more_urgent && !own) return false;
  const auto theirs = tenants.find(other.tenant);
  return theirs == tenants.end() || theirs->second.Borrows(taken + AllDevices(other));
}

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

// Leaves out what need not stop beside larger ones behind it, or such on several nodes; the dearest are spared first.
// The first `known` were all needed, and still are on nodes where none of the others gives anything back.
void SpareNeedless(const Job& job, size_t known, Room& room) {
  Views touched;
  std::copy_if(room.views.begin(), room.views.end(), std::back_inserter(touched), [&](const NodeView* view) {
    return std::any_of(room.victims.begin() + static_cast<int64_t>(known), room.victims.end(),
                       [&](const Job* victim) { return Gain(*victim, *view, job) > 0; });
  });
  for (size_t i = room.victims.size(); i-- > 0;) {
    const Job& victim = *room.victims[i];
    const auto gains = [&](const NodeView* view) { return Gain(victim, *view, job) > 0; };
    const auto needs = [&](const NodeView* view) {
      const int gain = Gain(victim, *view, job);
      return gain > 0 && Missing(room.victims, *view, job) + gain > 0;
    };
    if (std::none_of(touched.begin(), touched.end(), gains)) continue;
    if (std::none_of(room.views.begin(), room.views.end(), needs))
      room.victims.erase(room.victims.begin() + static_cast<int64_t>(i));
  }
}

// The room with one node more, on which as many of the candidates stop, in their order, as are needed besides what
// stops already. None if that is not enough.
std::optional<Room> EnoughOf(const std::vector<const Job*>& candidates, const Job& job, bool own, Room room,
                             NodeView& view, const Tenants& tenants) {
  const size_t known = room.victims.size();
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
  SpareNeedless(job, known, room);
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

// Of what stops: urgency of the most urgent, nodes of the widest, devices of all, and how many they are.
struct Cost {
  int urgency = -static_cast<int>(ServiceClass::kBackground);
  int widest = 1;
  int devices = 0;
  int victims = 0;

  bool operator==(const Cost&) const = default;
};

Cost CostOf(const Room& room) {
  Cost cost{.victims = static_cast<int>(room.victims.size())};
  for (const Job* victim : room.victims) {
    cost.urgency = std::max(cost.urgency, -static_cast<int>(victim->service_class));
    cost.widest = std::max(cost.widest, victim->nodes);
    cost.devices += AllDevices(*victim);
  }
  return cost;
}

// A node that may come next, and what of a room's cost it adds to or raises.
struct Offer {
  NodeView* view;
  Cost extra;
};

Cost Extra(const Room& room, const Room& larger) {
  const Cost before = CostOf(room);
  Cost extra = CostOf(larger);
  extra.devices -= before.devices;
  extra.victims -= before.victims;
  return extra;
}

// None where not enough can stop.
std::optional<Offer> OfferOf(const Job& job, bool own, const Room& room, NodeView& view, const Tenants& tenants) {
  const std::optional<Room> larger = WithNode(job, own, room, view, tenants);
  return larger ? std::optional<Offer>({&view, Extra(room, *larger)}) : std::nullopt;
}

// Makes offers anew where an attempt runs that is also on a node of the room: if it stops, both gain.
void Renew(const Job& job, bool own, const Room& room, const Tenants& tenants, std::vector<Offer>& offers) {
  const auto in_room = [&](const Release& release) {
    const Job* other = release.preemptible;
    return other != nullptr && other->nodes > 1 &&
           std::any_of(room.views.begin(), room.views.end(),
                       [&](const NodeView* view) { return HeldOn(*other, view->node->id) != nullptr; });
  };
  for (Offer& offer : offers) {
    const std::vector<Release>& releases = offer.view->releases;
    if (std::any_of(releases.begin(), releases.end(), in_room))
      offer = OfferOf(job, own, room, *offer.view, tenants).value_or(offer);
  }
}

// As many of the nodes as the job needs, one after the other that which costs least beside those before it: first the
// least urgent stop, then the fewest. That may miss one attempt that would make room on several of them alone:
// `widest_first` begins where such a one stops. Offers are those beside no other node. The more stops, the less their
// tenants have left to lose; so one is made again before it is taken, and those that are dearer are not looked at.
std::optional<Room> RoomOn(std::vector<Offer> offers, const Job& job, bool own, bool widest_first,
                           const Tenants& tenants) {
  Room room;
  while (static_cast<int>(room.views.size()) < job.nodes) {
    const Cost cost = CostOf(room);
    const auto key = [&](const Offer& offer) {
      return std::make_tuple(widest_first ? -std::max(cost.widest, offer.extra.widest) : 0,
                             std::max(cost.urgency, offer.extra.urgency), offer.extra.devices, offer.extra.victims,
                             absl::string_view(offer.view->node->id));
    };
    const auto best =
        std::min_element(offers.begin(), offers.end(), [&](const Offer& a, const Offer& b) { return key(a) < key(b); });
    if (best == offers.end()) return std::nullopt;
    std::optional<Room> larger = WithNode(job, own, room, *best->view, tenants);
    if (!larger) {
      offers.erase(best);
    } else if (const Cost extra = Extra(room, *larger); extra != best->extra) {
      best->extra = extra;
    } else {
      room = *std::move(larger);
      offers.erase(best);
      Renew(job, own, room, tenants, offers);
    }
  }
  return room;
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

}  // namespace

std::optional<Room> CheapestRoom(const Job& job, bool own, Snapshot& snapshot,
                                 const std::optional<Reservation>& reservation, absl::Time end) {
  std::optional<Room> best;
  const auto key = [](const Room& room) {
    const Cost cost = CostOf(room);
    return std::make_tuple(cost.urgency, cost.devices, cost.victims, absl::string_view(room.views.back()->node->id));
  };
  for (const bool gpus : {true, false}) {
    std::vector<Offer> offers;
    for (NodeView& view : snapshot.nodes) {
      if (view.node->gpus != gpus || !CouldRun(job, *view.node)) continue;
      if (!LeavesReservation(job, view, reservation, end)) continue;
      if (const auto offer = OfferOf(job, own, {}, view, snapshot.tenants)) offers.push_back(*offer);
    }
    if (static_cast<int>(offers.size()) < job.nodes) continue;
    for (const bool widest_first : {false, true}) {
      if (widest_first && job.nodes == 1) continue;
      std::optional<Room> room = RoomOn(offers, job, own, widest_first, snapshot.tenants);
      if (room && (!best || key(*room) < key(*best))) best = std::move(room);
    }
  }
  return best;
}

void Promise(const Room& room, const Job& job, absl::Time end, Snapshot& snapshot) {
  for (const Job* victim : room.victims) snapshot.tenants[victim->tenant].kept_devices -= AllDevices(*victim);
  for (NodeView& view : snapshot.nodes) Stop(room.victims, view);
  for (NodeView* view : room.views) {
    const int from_stopping = std::min(view->stopping, job.devices);
    view->stopping -= from_stopping;
    // Fewer may be free of that size than counted, if what stops gives back others.
    TakeFree(job, std::min(job.devices - from_stopping, FreeFor(job, *view)), *view);
    AddRelease(job, end, *view);
  }
}

}  // namespace luthier
