// Which waiting jobs start now, and what the others hear of why they wait. The policy decides from a snapshot
// (server/core/policy.h); here it is made, and what was decided is done.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/node_kinds.h"
#include "server/core/placement.h"
#include "server/core/state.h"

namespace luthier {
namespace {

// A head of the queue that fits nowhere must not make every cycle walk through a million jobs behind it.
constexpr size_t kCandidates = 500;
// Nor those of sweeps that run as many jobs as they may.
constexpr size_t kLooks = 10000;
// Of nodes that would take a job and get none: one is enough for it, and the list of nodes has the others.
constexpr size_t kNamedNodes = 3;

// Of a gang that enough nodes would be large enough for, or some: what keeps it from them.
std::string TooFewNodesFor(const Job& job, const std::map<std::string, Node>& nodes) {
  NodeKinds large, reachable;
  for (const auto& [id, node] : nodes) {
    if (!node.TakesWork() || !HasDevicesFor(job, node)) continue;
    large.Add(node);
    if (CouldRun(job, node)) reachable.Add(node);
  }
  const int most = large.most();
  if (most < job.nodes) {
    return absl::StrCat("the job asks for ", job.nodes, " nodes, all with GPUs or all without, and ", most,
                        " connected ", most == 1 ? "one has" : "ones have",
                        " what it needs of each; connect more, or clone the job with fewer resources.nodes");
  }
  return absl::StrCat("the job asks for ", job.nodes, " nodes that reach one another, and of the ", most,
                      " connected ones that are large enough ", reachable.most(),
                      " can take part; start luthier-worker there with --gang-address, and without --shares");
}

// With the most that a node it may run on has of what is missing.
std::string TooLargeFor(const Job& job, const std::map<std::string, Node>& nodes) {
  if (absl::c_any_of(nodes, [&](const auto& n) { return n.second.TakesWork() && HasDevicesFor(job, n.second); })) {
    return TooFewNodesFor(job, nodes);
  }
  int devices = 0;
  int64_t memory = 0, needed = 0;
  for (const auto& [id, node] : nodes) {
    if (!node.TakesWork() || !HasLabels(node, job)) continue;
    devices = std::max(devices, node.shares > 1 ? 1 : node.devices);  // a job has one part of a GPU at most
    const bool in_main_memory = node.gpus && ComputesOnCpus(job);
    for (const int64_t bytes : in_main_memory ? std::vector<int64_t>{node.main_memory} : node.memory) {
      if (bytes > memory) needed = in_main_memory ? job.cpu_memory_bytes : MemoryFor(job, node);
      memory = std::max(memory, bytes);
    }
  }
  if (devices < job.devices) {
    return absl::StrCat("the job asks for ", job.devices, job.nodes > 1 ? " devices of each node" : " devices",
                        " and the largest connected node has ", devices,
                        "; connect a larger one, or clone the job with fewer resources.devices");
  }
  return absl::StrCat("the job needs ", SizeText(needed), " on ",
                      job.devices == 1 ? "a device" : absl::StrCat("each of ", job.devices, " devices"),
                      " and the largest that a connected node has is one of ", SizeText(memory),
                      "; connect a node with more");
}

// "node a", or "nodes a, b".
std::string NodesOf(const Decision& decision) {
  std::string text = absl::StrCat(decision.others.empty() ? "node " : "nodes ", decision.node);
  for (const Place& place : decision.others) absl::StrAppend(&text, ", ", place.node);
  return text;
}

// Nothing else shows why these have no room.
std::string NodesWithLeftovers(const std::map<std::string, Node>& nodes) {
  std::vector<std::string> ids;
  for (const auto& [id, node] : nodes) {
    if (node.TakesWork() && !node.leftovers.empty()) ids.push_back(id);
  }
  if (ids.empty()) return "";
  return absl::StrCat("; an attempt that is over has not ended yet on ", absl::StrJoin(ids, ", "));
}

std::string MessageOf(const Decision& decision, const std::map<std::string, Node>& nodes) {
  const Job& job = *decision.job;
  int ready = 0;
  for (const auto& [id, node] : nodes) ready += node.TakesWork() ? 1 : 0;
  switch (decision.wait) {
    case Wait::kNoNode:
      return nodes.empty() ? "no node is connected; start luthier-worker on a machine"
                           : "no node is connected that takes jobs; `luthier node list` says why, and luthier-worker "
                             "on another machine adds one";
    case Wait::kTooLarge: return TooLargeFor(job, nodes);
    case Wait::kNoMatch:
      return absl::StrCat(
          "no connected node has the labels ", job.node_selector,
          "; start a worker with them (`luthier-worker --label`), or give another resources.node_selector");
    case Wait::kBusy:
      if (job.nodes > 1) {
        return absl::StrCat("the job asks for ", job.nodes, " nodes at once, and fewer of the ", ready,
                            " connected ones have room", NodesWithLeftovers(nodes));
      }
      return absl::StrCat(
          ready == 1 ? "the connected node is busy" : absl::StrCat("all ", ready, " connected nodes are busy"),
          NodesWithLeftovers(nodes));
    case Wait::kReserved: return "the free devices are kept for a job that comes before it";
    case Wait::kMakingRoom:
      return absl::StrCat(NodesOf(decision), " will have room: attempts are stopping there for it");
    case Wait::kTenantLimit:
      return absl::StrCat("tenant ", job.tenant, " may not use ", AllDevices(job),
                          AllDevices(job) == 1 ? " device" : " devices",
                          " more than it does; wait for others of its jobs, or have an admin raise its --max-devices "
                          "(`luthier tenant set`)");
    default: return "it is about to start";
  }
}

// For whoever reads the history of a job that was stopped, and may know nothing of the other's tenant.
std::string WhyPreempted(const Job& job, const Decision& decision) {
  std::string node = decision.node;
  for (const Place& place : decision.others) {
    if (HeldOn(job, node) == nullptr) node = place.node;
  }
  const bool more_urgent = job.service_class > decision.job->service_class;
  return more_urgent ? absl::StrCat("node ", node, " is needed for a more urgent job")
                     : absl::StrCat("it borrowed devices of node ", node,
                                    ", which a tenant wants back to which they are guaranteed");
}

// Connected nodes that get nothing for now and are of use to the job: with them, and those of their kind that do take
// work, it has enough. `outdated`, `drained`: whether those count.
std::vector<const Node*> WithheldFrom(const Job& job, const std::map<std::string, Node>& nodes, bool outdated,
                                      bool drained) {
  std::vector<const Node*> withheld;
  NodeKinds fit;
  for (const auto& [id, node] : nodes) {
    if (!node.ready || (node.outdated && !outdated) || (node.draining && !drained) || !CouldRun(job, node)) continue;
    fit.Add(node);
    if (!node.TakesWork()) withheld.push_back(&node);
  }
  std::erase_if(withheld, [&](const Node* node) { return fit.LikeThis(*node) < job.nodes; });
  return withheld;
}

// "node a", or "nodes a, b, c and 2 more". Requires: one or more.
std::string NamesOf(const std::vector<const Node*>& nodes) {
  const size_t named = std::min(nodes.size(), kNamedNodes);
  const std::string names = absl::StrJoin(nodes.begin(), nodes.begin() + static_cast<int64_t>(named), ", ",
                                          [](std::string* out, const Node* node) { absl::StrAppend(out, node->id); });
  return absl::StrCat(nodes.size() == 1 ? "node " : "nodes ", names,
                      nodes.size() > named ? absl::StrCat(" and ", nodes.size() - named, " more") : "");
}

// None if the job would wait as well if every node took work. What ends by itself is said first.
std::optional<WaitReason> WhyWithheld(const Job& job, const std::map<std::string, Node>& nodes, absl::Time now) {
  const std::vector<const Node*> quarantined = WithheldFrom(job, nodes, /*outdated=*/false, /*drained=*/false);
  if (!quarantined.empty()) {
    const Node& first = **absl::c_min_element(
        quarantined, [](const Node* a, const Node* b) { return a->quarantine_end < b->quarantine_end; });
    return WaitReason{
        Wait::kQuarantined,
        absl::StrCat("node ", first.id, " is quarantined for another ",
                     absl::ToInt64Seconds(absl::Ceil(first.quarantine_end - now, absl::Seconds(1))),
                     " s, since attempts of several jobs died there; `luthier node undrain ", first.id, "` ends that")};
  }
  std::vector<const Node*> outdated = WithheldFrom(job, nodes, /*outdated=*/true, /*drained=*/false);
  std::erase_if(outdated, [](const Node* node) { return !node->outdated; });
  if (!outdated.empty()) {
    return WaitReason{Wait::kOutdated, absl::StrCat(NamesOf(outdated),
                                                    " would take it, but only with the server's version of "
                                                    "luthier-worker; update it there")};
  }
  std::vector<const Node*> drained = WithheldFrom(job, nodes, /*outdated=*/true, /*drained=*/true);
  std::erase_if(drained, [](const Node* node) { return !node->draining; });
  if (drained.empty()) return std::nullopt;
  return WaitReason{
      Wait::kDrained,
      absl::StrCat(NamesOf(drained),
                   drained.size() == 1 ? " would take it, but is drained; " : " would take it, but are drained; ",
                   "`luthier node undrain ", drained.front()->id, "` gives it work again")};
}

}  // namespace

bool State::SomeoneWantsItsOwn() const {
  return absl::c_any_of(tenants_, [&](const auto& tenant) {
    const int guaranteed = tenant.second.guaranteed_devices;
    if (guaranteed == 0) return false;
    const JobTable::Load load = jobs_.LoadOf(tenant.first);
    return load.waiting > 0 && load.kept_devices() < guaranteed;
  });
}

// When a running attempt may first be preempted is told by time alone.
bool State::LookForPreemption(absl::Time now) {
  next_preemption_ = absl::InfiniteFuture();
  const ServiceClass most_urgent = jobs_.queues().begin()->first.first;
  const bool reclaims = SomeoneWantsItsOwn();
  if (!reclaims && !jobs_.RunsLessUrgentThan(most_urgent)) return false;
  bool any = false;
  for (const auto& [id, node] : nodes_) {
    for (const std::string& job_id : jobs_.OnNode(id)) {
      const Job& job = *Find(job_id);
      if (job.service_class <= most_urgent && !reclaims) continue;
      if (!NextState(job.state, JobInput::kPreempted)) continue;
      const absl::Time first = job.attempt_start + options_.preempt_after;
      any |= first <= now;
      if (first > now) next_preemption_ = std::min(next_preemption_, first);
    }
  }
  return any;
}

// 1. Is there anything to decide?  2. Is there any room?  3. What the policy says of the first of the queue.  4. Do it.
void State::Schedule(absl::Time now) {
  if (jobs_.EndDelays(now) || next_preemption_ <= now) unsettled_ = true;
  if (!unsettled_) return;
  unsettled_ = false;
  decisions_.reset();
  if (jobs_.queues().empty()) return;

  const bool preempts = LookForPreemption(now);
  const std::vector<NodeView> nodes = NodeViews(now);
  if (!preempts && absl::c_all_of(nodes, [](const NodeView& view) { return view.free.empty(); })) return;

  size_t started = 0, waiting = 0;
  std::vector<Decision> decisions = Decide(TakeSnapshot(now, kCandidates));
  decisions_.emplace();
  for (Decision& decision : decisions) {
    const int64_t number = decision.job->number;
    (decision.wait == Wait::kNone ? started : waiting) += 1;
    if (decision.wait == Wait::kNone) {
      Start(decision, now);
    } else {
      for (const Job* job : decision.preempted) Preempt(*job, WhyPreempted(*job, decision), now);
      decisions_->emplace(number, std::move(decision));
    }
  }
  // There may be room for some of those behind: go on with the next batch.
  unsettled_ = started > 0 && started + waiting >= kCandidates;
}

void State::Start(const Decision& decision, absl::Time now) {
  const Job& job = jobs_.Update(*decision.job, [&](Job& j) {
    j.attempt = std::max(j.attempt, epoch_ * kAttemptsPerEpoch) + 1;
    j.last_report = 0;
    j.node = decision.node;
    j.held = decision.devices;
    j.others = decision.others;
    j.not_before = absl::InfinitePast();
    j.attempt_start = now;
    j.charged = absl::Floor(ExpectedDuration(j, speeds_), absl::Microseconds(1));  // as the record has it
    j.expected_end = absl::InfiniteFuture();
    if (j.start_time == absl::InfinitePast()) j.start_time = now;
  });
  // Now rather than at the end: a tenant that has used little must not take every node in one cycle.
  Charge(job.tenant, absl::ToDoubleSeconds(job.charged) * HeldDevices(job), now);
  Apply(job, JobInput::kPlaced, absl::StrCat("attempt ", job.attempt, " on ", NodesOf(decision)), now);
  Send(Effect::Kind::kStart, job);
}

Snapshot State::TakeSnapshot(absl::Time now, size_t candidates, bool for_forecast) const {
  Snapshot snapshot{.now = now, .speeds = &speeds_, .nodes = NodeViews(now)};
  const size_t share = std::max<size_t>(1, candidates / std::max<size_t>(1, jobs_.queues().size()));
  std::map<int64_t, int> room;  // jobs that may start, of each sweep with a limit
  for (const auto& [key, queue] : jobs_.queues()) {
    const auto& [service_class, tenant] = key;
    std::vector<const Job*>& jobs = snapshot.waiting[static_cast<size_t>(service_class) - 1][tenant];
    size_t within = 0, beyond = 0, looks = 0;
    for (auto job = queue.begin(); job != queue.end() && within < share && ++looks <= kLooks; ++job) {
      const int limit = (*job)->max_parallel;
      const bool is_beyond =
          limit > 0 && room.try_emplace((*job)->sweep, limit - jobs_.RunningOf((*job)->sweep)).first->second-- <= 0;
      if (is_beyond && (!for_forecast || beyond == share)) continue;
      ++(is_beyond ? beyond : within);
      jobs.push_back(*job);
    }
    snapshot.tenants[tenant] = ViewOf(tenant, now);
  }
  // Of what these have within it nothing may be taken, also while none of their jobs waits.
  for (const auto& [id, tenant] : tenants_) {
    if (tenant.guaranteed_devices > 0) snapshot.tenants[id] = ViewOf(id, now);
  }
  if (for_forecast) snapshot.ends_of_sweeps = EndsOfSweeps(now);
  return snapshot;
}

// Also of what runs on nodes that take no work any more. What was told to stop ends at any moment.
std::map<int64_t, std::map<int64_t, absl::Time>> State::EndsOfSweeps(absl::Time now) const {
  std::map<int64_t, std::map<int64_t, absl::Time>> ends;
  for (const auto& [id, node] : nodes_) {
    for (const std::string& job_id : jobs_.OnNode(id)) {
      const Job& job = *Find(job_id);
      if (job.max_parallel > 0) ends[job.sweep][job.number] = IsStopping(job.state) ? now : ExpectedEnd(job);
    }
  }
  return ends;
}

absl::Time State::ExpectedEnd(const Job& job) const {
  return job.expected_end != absl::InfiniteFuture() ? job.expected_end
                                                    : job.attempt_start + ExpectedDuration(job, speeds_);
}

TenantView State::ViewOf(const std::string& id, absl::Time now) const {
  const JobTable::Load load = jobs_.LoadOf(id);
  TenantView view{.running_devices = load.running_devices, .kept_devices = load.kept_devices()};
  const auto known = tenants_.find(id);
  if (known == tenants_.end()) return view;
  view.usage = known->second.UsageAt(now);
  view.weight = known->second.weight;
  view.max_devices = known->second.max_devices;
  view.guaranteed_devices = known->second.guaranteed_devices;
  return view;
}

std::vector<NodeView> State::NodeViews(absl::Time now) const {
  std::vector<NodeView> views;
  for (const auto& [id, node] : nodes_) {
    if (!node.TakesWork()) continue;
    NodeView view{&node};
    std::set<int> held;
    for (const std::string& job_id : jobs_.OnNode(id)) {
      const Job& job = *Find(job_id);
      const std::vector<int>& held_here = *HeldOn(job, id);
      held.insert(held_here.begin(), held_here.end());
      const int devices = static_cast<int>(held_here.size());
      if (IsStopping(job.state)) {
        view.stopping += devices;
        continue;
      }
      const bool preemptible =
          NextState(job.state, JobInput::kPreempted) && job.attempt_start + options_.preempt_after <= now;
      view.releases.push_back({ExpectedEnd(job), devices, preemptible ? &job : nullptr, job.tenant});
    }
    // When a stale attempt ends nobody can say: a trainer may hang in its driver. So it releases nothing that could be
    // planned with.
    for (const auto& [attempt, devices] : node.processes) held.insert(devices.begin(), devices.end());
    for (const auto& [attempt, left] : node.leftovers) held.insert(left.devices.begin(), left.devices.end());
    for (int device = 0; device < node.devices; ++device) {
      if (held.count(device) == 0) view.free.push_back(device);
    }
    views.push_back(std::move(view));
  }
  return views;
}

WaitReason State::WhyItWaits(const Job& job, absl::Time now) {
  if (job.state == JobState::kHeld) return {Wait::kHeld, "created on hold; start it when it may run"};
  if (job.state == JobState::kPaused) return {Wait::kPaused, "paused; resume it when it may go on"};
  if (!IsWaiting(job.state)) return {};
  if (now < job.not_before) {
    return {Wait::kBackoff, absl::StrCat("attempt ", job.attempt, " was lost; the next one starts in ",
                                         absl::ToInt64Seconds(absl::Ceil(job.not_before - now, absl::Seconds(1))),
                                         " s; `luthier job logs ", job.id, "` says why")};
  }
  if (job.max_parallel > 0 && jobs_.RunningOf(job.sweep) >= job.max_parallel) {
    return {Wait::kSweepLimit,
            absl::StrCat("its sweep runs ", job.max_parallel, job.max_parallel == 1 ? " job" : " jobs", " at a time")};
  }
  if (!decisions_) {
    decisions_.emplace();
    for (Decision& decision : Decide(TakeSnapshot(now, kCandidates))) {
      const int64_t number = decision.job->number;
      decisions_->emplace(number, std::move(decision));
    }
  }
  const auto decided = decisions_->find(job.number);
  if (decided == decisions_->end()) {
    return {Wait::kBehindOthers, absl::StrCat("others come first; ", jobs_.waiting(), " jobs wait in all")};
  }
  if (const Wait wait = decided->second.wait;
      wait == Wait::kNoNode || wait == Wait::kTooLarge || wait == Wait::kNoMatch) {
    if (std::optional<WaitReason> reason = WhyWithheld(job, nodes_, now)) return *std::move(reason);
  }
  return {decided->second.wait, MessageOf(decided->second, nodes_)};
}

}  // namespace luthier
