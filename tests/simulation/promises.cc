// What must hold: after every commit, after every restart of the server, and when everything is over.
#include <algorithm>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/simulation/attempt.h"

namespace luthier {
namespace {

// After a cancellation was acknowledged, with the agent connected all the while: grace, delays of messages, and a bit.
constexpr absl::Duration kCancelPatience = absl::Seconds(60);

// Until an order has arrived, or the end of what never began.
constexpr absl::Duration kOrderPatience = absl::Seconds(5);

// What survives in the record of a job.
auto Durable(const Job& job) {
  return std::make_tuple(job.state, job.attempt, job.lost_attempts, job.node, job.held, job.others, job.last_event,
                         job.last_report, job.priority, job.revision, job.preemptions, job.model_version, job.lost_on,
                         job.crashed_on, job.stored_step, job.tuning, job.work_tokens, job.charged);
}

}  // namespace

void Simulation::ForEachAttempt(const std::function<void(const Agent&, const Attempt&)>& visit) const {
  for (const auto& [node, agent] : agents_) {
    if (agent.roster == nullptr) continue;
    for (const auto& [name, entry] : agent.roster->entries()) visit(agent, static_cast<const Attempt&>(*entry));
  }
}

// After every commit.
void Simulation::CheckState() {
  std::map<JobState, int64_t> counts;
  std::vector<const Job*> jobs;
  state_->jobs().ForEach([&](const Job& job) { jobs.push_back(&job); });
  std::sort(jobs.begin(), jobs.end(), [](const Job* a, const Job* b) { return a->number < b->number; });
  for (const Job* job : jobs) {
    ++counts[job->state];
    if (job->lost_attempts > kMaxLostAttempts + 1) Violate(absl::StrCat("P4: ", job->id, " was tried again too often"));
    if (const auto crashed = crashed_on_.find(job->id);
        crashed != crashed_on_.end() && crashed->second.size() >= kMaxCrashNodes) {
      Violate(absl::StrCat("P4: ", job->id, " goes on after its trainer died on ", crashed->second.size(), " nodes"));
    }
    if (failed_by_user_.count(job->id) > 0)
      Violate(absl::StrCat("P4: ", job->id, " goes on after an error of its user"));
    if (IsWaiting(job->state) && state_->WhyItWaits(*job, ServerNow()).code == Wait::kNone) {
      Violate(absl::StrCat("no reason why ", job->id, " waits"));
    }
  }
  for (const JobState state : kAllStates) {
    if (!IsTerminal(state) && state_->jobs().count(state) != counts[state])
      Violate(absl::StrCat("count of ", StateName(state), " is wrong"));
  }
  CheckAttempts();
  CheckDevices(jobs);
  CheckCancelled();
}

// P3: an attempt is one try, on one node, or each of its parts is.
void Simulation::CheckAttempts() {
  std::map<std::pair<std::string, int>, std::string> nodes;
  ForEachAttempt([&](const Agent& agent, const Attempt& attempt) {
    if (!attempt.has_process()) return;
    const std::string name = attempt.name().text();
    const auto [first, only] = nodes.emplace(std::make_pair(name, attempt.order().gang().node_rank()), agent.node);
    if (!only) Violate(absl::StrCat("P3: ", name, " runs on ", first->second, " and on ", agent.node));
  });
}

// P6: a device is held once, by what runs, on a node that is heard of.
void Simulation::CheckDevices(const std::vector<const Job*>& jobs) {
  std::map<int64_t, int> of_sweep;
  for (const Job* job : jobs) {
    if (job->max_parallel > 0 && HoldsDevices(job->state) && ++of_sweep[job->sweep] > kParallelOfASweep)
      Violate(absl::StrCat("P6: the sweep of ", job->id, " runs more jobs than it may"));
  }
  std::map<std::string, std::set<int>> taken;
  for (const Job* job : jobs) {
    if (!HoldsDevices(job->state)) {
      if (HeldDevices(*job) > 0)
        Violate(absl::StrCat("leak: ", job->id, " is ", StateName(job->state), " and holds devices"));
      continue;
    }
    CheckPlaces(*job, taken);
  }
  CheckHolders(jobs);
  CheckCounts(jobs);
}

// No job holds for long what is on a node whose agent is there and does not have its attempt.
void Simulation::CheckHolders(const std::vector<const Job*>& jobs) {
  std::map<std::pair<std::string, std::string>, absl::Time> missing;
  for (const Job* job : jobs) {
    if (!HoldsDevices(job->state)) continue;
    for (const auto& [node, held] : PlacesOf(*job)) {
      const Agent& agent = agents_.at(node);
      // What another node leads is ordered once that is there.
      if (held.empty() || !agents_.at(job->node).registered || !agent.registered || agent.roster->leaving()) continue;
      const std::pair key(node, AttemptName(*job));
      if (agent.roster->entries().count(key.second) > 0) continue;
      const auto before = missing_.find(key);
      const absl::Time since = std::max(
          {before == missing_.end() ? now_ : before->second, agent.link_since, agents_.at(job->node).link_since});
      missing[key] = since;
      if (since + kOrderPatience < now_ && last_full_ + absl::Seconds(5) < now_)
        Violate(absl::StrCat("leak: ", key.second, " holds devices of ", node, ", whose agent does not have it"));
    }
  }
  missing_ = std::move(missing);
}

// All nodes of a job or none, each with all devices; a part that does not lead and has ended has none any more.
void Simulation::CheckPlaces(const Job& job, std::map<std::string, std::set<int>>& taken) {
  const std::vector<Place> places = PlacesOf(job);
  if (static_cast<int>(places.size()) != job.nodes)
    Violate(absl::StrCat("P6: ", job.id, " is on ", places.size(), " nodes of ", job.nodes));
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const auto& [id, held] = places[rank];
    if (rank > 0 && held.empty()) continue;
    if (static_cast<int>(held.size()) != job.devices)
      Violate(absl::StrCat("P6: ", job.id, " holds ", held.size(), " devices of ", job.devices, " on ", id));
    for (const int device : held) {
      if (!taken[id].insert(device).second) Violate(absl::StrCat("P6: device ", device, " of ", id, " is held twice"));
      if (device >= agents_[id].devices) Violate(absl::StrCat("P6: ", id, " has no device ", device));
    }
    const auto node = state_->nodes().find(id);
    // What cannot be written has not happened: a full disk puts the end of a lease off.
    const bool writes = last_full_ + absl::Seconds(5) < now_;
    if (node == state_->nodes().end() || (writes && node->second.deadline + absl::Seconds(5) < ServerNow())) {
      Violate(
          absl::StrCat("leak: ", job.id, " holds devices of ", id, ", which was not heard of for longer than a lease"));
    }
  }
}

// What counts against limits and guarantees of a tenant is what its jobs hold, on all of their nodes.
void Simulation::CheckCounts(const std::vector<const Job*>& jobs) {
  std::map<std::string, size_t> held;
  for (const Job* job : jobs) {
    for (const Place& place : PlacesOf(*job)) held[job->tenant] += place.devices.size();
  }
  for (const auto& [tenant, devices] : held) {
    const int counted = state_->jobs().LoadOf(tenant).running_devices;
    if (static_cast<int>(devices) != counted)
      Violate(absl::StrCat("P6: tenant ", tenant, " holds ", devices, " devices, and ", counted, " are counted"));
  }
}

// P9, of what a batch decides: an attempt is ordered to start on all of its nodes at once, and when it is over, all are
// told that have not said so themselves.
void Simulation::CheckGangs(const Writes& writes, const std::vector<Effect>& effects) {
  const auto is_told = [&](Effect::Kind kind, const std::string& node, const std::string& attempt) {
    return std::any_of(effects.begin(), effects.end(), [&](const Effect& effect) {
      return effect.kind == kind && effect.node == node && effect.attempt == attempt;
    });
  };
  for (const Job& job : writes.jobs) {
    const auto before = durable_.find(job.id);
    const bool had_one = before != durable_.end() && HoldsDevices(before->second.state);
    const bool is_new = !had_one || before->second.attempt != job.attempt;
    if (HoldsDevices(job.state) && is_new) {
      for (const Place& place : PlacesOf(job)) {
        if (!is_told(Effect::Kind::kStart, place.node, AttemptName(job)))
          Violate(absl::StrCat("P9: ", AttemptName(job), " was not ordered to start on ", place.node));
      }
    }
    if (!had_one || before->second.nodes == 1 || (HoldsDevices(job.state) && !is_new)) continue;
    const std::string attempt = AttemptName(before->second);
    for (const Place& place : PlacesOf(before->second)) {
      if (place.devices.empty()) continue;  // its part has ended
      if (MustBeTold(place.node, attempt) && !is_told(Effect::Kind::kStop, place.node, attempt))
        Violate(absl::StrCat("P9: ", attempt, " is over, and ", place.node, " was not told"));
    }
  }
}

// Whether the attempt goes on there, and its agent has a session.
bool Simulation::MustBeTold(const std::string& node, const std::string& attempt) const {
  bool goes_on = false;
  ForEachAttempt([&](const Agent& agent, const Attempt& known) {
    goes_on |= agent.node == node && known.name().text() == attempt && known.goes_on();
  });
  return goes_on && sessions_.count(node) > 0 && state_->nodes().at(node).ready;
}

// What was decided in a batch: nothing starts where nothing may start, or before what is within the guarantee of
// another tenant, and nothing but a drain or an agent that leaves stops what runs unless something waits that may stop
// it.
void Simulation::CheckDecisions(const Writes& writes) {
  for (const Event& event : writes.events) {
    const auto job =
        std::find_if(writes.jobs.begin(), writes.jobs.end(), [&](const Job& j) { return j.number == event.job; });
    if (event.state == static_cast<int>(JobState::kStarting)) {
      for (const Place& place : PlacesOf(*job)) {
        if (!state_->nodes().at(place.node).TakesWork())
          Violate(absl::StrCat(job->id, " was started on ", place.node, ", which gets nothing"));
      }
      CheckBorrower(*job, writes);
      CheckUrgency(*job, writes);
    }
    if (event.state != static_cast<int>(JobState::kPreempting) || absl::EndsWith(event.message, "drained")) continue;
    if (absl::EndsWith(event.message, "leaves")) continue;
    if (event.message == "resumed by a user") continue;  // it was told to stop when it was paused
    ++counts_.preemptions;
    if (absl::StrContains(event.message, "borrowed")) ++counts_.reclaims;
    if (!IsWantedBack(*job, writes)) Violate(absl::StrCat(job->id, " was stopped and nothing waits that may stop it"));
    if (ServerNow() < job->attempt_start + preempt_after_) Violate(absl::StrCat(job->id, " was stopped too soon"));
  }
}

// Whether something waits that may stop the job, which was just told to stop: of its own tenant what is more urgent; of
// another, if the tenant has as much without it as is guaranteed to it, also what is within a guarantee.
bool Simulation::IsWantedBack(const Job& job, const Writes& writes) {
  const int guaranteed = state_->TenantOf(job.tenant).guaranteed_devices;
  int kept = state_->jobs().LoadOf(job.tenant).kept_devices();
  for (const Job& other : writes.jobs) {  // the job may have been the first of them
    if (other.tenant == job.tenant && other.number != job.number && other.state == JobState::kPreempting)
      kept += AllDevices(other);
  }
  const bool borrowed = guaranteed == 0 || kept >= guaranteed;
  for (const auto& [key, queue] : state_->jobs().queues()) {
    const auto& [service_class, tenant] = key;
    const bool more_urgent = service_class < job.service_class;
    if (more_urgent && (borrowed || tenant == job.tenant)) return true;
    if (!borrowed || tenant == job.tenant) continue;
    const int own = state_->TenantOf(tenant).guaranteed_devices - state_->jobs().LoadOf(tenant).kept_devices();
    if (std::any_of(queue.begin(), queue.end(), [&](const Job* waits) { return AllDevices(*waits) <= own; }))
      return true;
  }
  return false;
}

// A job of a tenant without a guarantee starts only where nothing that waits could have started of a tenant that has
// one, and has it for all of its jobs that wait.
void Simulation::CheckBorrower(const Job& job, const Writes& writes) {
  if (state_->TenantOf(job.tenant).guaranteed_devices > 0) return;
  std::map<std::string, std::vector<const Job*>> waiting;
  for (const auto& [key, queue] : state_->jobs().queues()) {
    std::vector<const Job*>& of_tenant = waiting[key.second];
    of_tenant.insert(of_tenant.end(), queue.begin(), queue.end());
  }
  for (const auto& [tenant, jobs] : waiting) {
    int wanted = state_->jobs().LoadOf(tenant).kept_devices();
    for (const Job* waits : jobs) wanted += AllDevices(*waits);
    // What it keeps is less than when this was decided if some of its own was stopped.
    const bool stopped = std::any_of(writes.jobs.begin(), writes.jobs.end(), [&, id = tenant](const Job& other) {
      return other.tenant == id && other.state == JobState::kPreempting;
    });
    if (stopped || wanted > state_->TenantOf(tenant).guaranteed_devices) continue;
    for (const Job* waits : jobs) {
      // One that takes longer may not have fitted before a reservation.
      if (ExpectedDuration(*waits, state_->speeds()) > ExpectedDuration(job, state_->speeds())) continue;
      if (waits->max_parallel == 0 && waits->devices <= job.devices && waits->nodes <= job.nodes)
        Violate(absl::StrCat(job.id, " borrowed what is guaranteed to the tenant of ", waits->id, ", which waits"));
    }
  }
}

// A job starts only where the most urgent that waits, of the same tenant, could not have had its devices. Where another
// tenant wants what is guaranteed to it, one that borrows may be left with nothing, and one that does not may not.
void Simulation::CheckUrgency(const Job& job, const Writes& writes) {
  const auto wants_its_own = [&](const std::string& tenant) {
    return tenant != job.tenant && state_->TenantOf(tenant).guaranteed_devices > 0;
  };
  for (const Job& other : writes.jobs) {
    if (other.state == JobState::kStarting && wants_its_own(other.tenant)) return;
  }
  std::vector<const Job*> more_urgent;
  for (const auto& [key, queue] : state_->jobs().queues()) {
    if (!queue.empty() && wants_its_own(key.second)) return;
    if (key.first < job.service_class) more_urgent.insert(more_urgent.end(), queue.begin(), queue.end());
  }
  if (more_urgent.size() != 1 || more_urgent[0]->tenant != job.tenant || more_urgent[0]->max_parallel > 0) return;
  int nodes = 0;
  for (const Place& place : PlacesOf(job)) {
    if (static_cast<int>(place.devices.size()) + FreeOn(place.node) >= more_urgent[0]->devices) ++nodes;
  }
  if (nodes >= more_urgent[0]->nodes)
    Violate(absl::StrCat(job.id, " was started while ", more_urgent[0]->id, " waits, which is more urgent"));
}

// Devices that nothing holds and no process uses.
int Simulation::FreeOn(const std::string& id) const {
  const Node& node = state_->nodes().at(id);
  std::set<int> used;
  for (const std::string& job : state_->jobs().OnNode(id)) {
    const std::vector<int>& held = *HeldOn(*state_->jobs().Find(job), id);
    used.insert(held.begin(), held.end());
  }
  for (const auto& [attempt, devices] : node.processes) used.insert(devices.begin(), devices.end());
  for (const auto& [attempt, left] : node.leftovers) used.insert(left.devices.begin(), left.devices.end());
  return node.devices - static_cast<int>(used.size());
}

// What a tenant is said to store is what the record has of it.
void Simulation::CheckStorage(const State& state) {
  std::map<std::string, int64_t> stored;
  const absl::StatusOr<std::vector<ModelVersion>> versions = store_->Versions("");
  for (const ModelVersion& version : *versions) stored[version.tenant] += kVersionBytes;
  for (const auto& [id, checkpoint] : checkpoints_) {
    const auto job = durable_.find(id);
    if (job != durable_.end()) stored[job->second.tenant] += checkpoint.step * kCheckpointBytesAStep;
  }
  for (const Tenant& tenant : state.tenants()) {
    if (tenant.storage_bytes != stored[tenant.id])
      Violate(absl::StrCat("tenant ", tenant.id, " stores ", stored[tenant.id], " bytes, and ", tenant.storage_bytes,
                           " are counted"));
  }
}

// P8: what is stored is the newest checkpoint of a job that is not over, written by an attempt that was current.
void Simulation::CheckCheckpoints(const Writes& writes) {
  for (const Writes::CheckpointChange& change : writes.checkpoints) {
    const auto job =
        std::find_if(writes.jobs.begin(), writes.jobs.end(), [&](const Job& j) { return j.number == change.job; });
    if (change.payload &&
        *change.payload != absl::StrCat("jobs/", job->id, "/attempts/", change.attempt, " step ", change.step))
      Violate(absl::StrCat("P8: a checkpoint of ", *change.payload, " was taken for attempt ", change.attempt));
  }
  for (const auto& [id, checkpoint] : checkpoints_) {
    const auto job = durable_.find(id);
    if (job == durable_.end()) {
      Violate(absl::StrCat("P8: ", id, " is over and has a checkpoint"));
    } else if (job->second.stored_step != checkpoint.step) {
      Violate(absl::StrCat("P8: ", id, " has a checkpoint of step ", checkpoint.step, " and says ",
                           job->second.stored_step));
    }
  }
}

// P7: a process of a cancelled job ends, if its agent could hear of it.
void Simulation::CheckCancelled() {
  for (const auto& [job, time] : cancelled_) {
    if (now_ < time + kCancelPatience) continue;
    ForEachAttempt([&, id = job, since = time](const Agent& agent, const Attempt& attempt) {
      if (agent.link == 0 || !agent.registered || now_ < agent.link_since + kCancelPatience) return;
      if (attempt.name().job != id || !attempt.trains()) return;
      Violate(absl::StrCat("P7: ", attempt.name().text(), " runs ", absl::FormatDuration(now_ - since),
                           " after its job was cancelled"));
    });
  }
}

// What was committed is what a new server knows.
void Simulation::CheckRestart(const State& loaded) {
  size_t live = 0;
  loaded.jobs().ForEach([&](const Job& job) {
    ++live;
    const auto before = durable_.find(job.id);
    if (before == durable_.end())
      return Violate(absl::StrCat("P1: ", job.id, " came back after it was over, or was never committed"));
    if (Durable(job) != Durable(before->second)) Violate(absl::StrCat("P1: ", job.id, " is not what was committed"));
  });
  if (live != durable_.size())
    Violate(absl::StrCat("P1: ", durable_.size(), " jobs were committed, ", live, " came back"));
  CheckStorage(loaded);
}

std::string Simulation::Unsettled() const {
  std::string text;
  if (!state_) return " no server";
  state_->jobs().ForEach([&](const Job& job) { absl::StrAppend(&text, " ", job.id, "=", StateName(job.state)); });
  for (const auto& request : requests_) {
    if (!request->acknowledged) absl::StrAppend(&text, " ", request->id);
  }
  ForEachAttempt([&](const Agent& agent, const Attempt& attempt) {
    absl::StrAppend(&text, " ", attempt.name().text(), " on ", agent.node,
                    attempt.has_process() ? " with a process" : "", " with ", attempt.backlog(), " reports");
  });
  for (const auto& [id, node] : state_->nodes()) {
    for (const auto& [attempt, left] : node.leftovers) absl::StrAppend(&text, " devices of ", attempt, " on ", id);
  }
  return text;
}

bool Simulation::Settled() {
  if (!state_ || state_->jobs().size() > 0) return false;
  for (const auto& request : requests_) {
    if (!request->acknowledged) return false;
  }
  for (const auto& [node, agent] : agents_) {
    if (agent.roster == nullptr || !agent.roster->entries().empty()) return false;
  }
  // All devices are free again.
  return std::all_of(state_->nodes().begin(), state_->nodes().end(),
                     [](const auto& node) { return node.second.processes.empty() && node.second.leftovers.empty(); });
}

// At the end, everything is over.
void Simulation::CheckRecord() {
  std::map<std::string, std::string> by_request;
  for (const auto& request : requests_) {
    const absl::StatusOr<RecordedJob> recorded = store_->GetJob(*request->acknowledged);
    if (!recorded.ok()) {
      Violate(absl::StrCat("P1: ", *request->acknowledged, " was acknowledged and is gone"));
      continue;
    }
    const Job& job = recorded->job;
    const absl::StatusOr<std::vector<Event>> events = store_->Events(job.number, 0, 1000000);
    int64_t sequence = 0;
    for (const Event& event : *events) {
      if (event.sequence != ++sequence) Violate(absl::StrCat("the events of ", job.id, " have a gap"));
    }
    if (!request->sweep.empty()) {
      const absl::StatusOr<Sweep> sweep = store_->GetSweep(request->sweep);
      if (!sweep.ok() || sweep->first_job != job.number || store_->JobsOf(*sweep)->size() != 3)
        Violate(absl::StrCat("P1: ", request->sweep, " is not the sweep that was acknowledged"));
    }
    if (job.state == JobState::kSucceeded && job.model_version.empty())
      Violate(absl::StrCat("P3: ", job.id, " succeeded without a version"));
  }
  CheckStorage(*state_);
  if (!store_->Checkpoints()->empty()) Violate("P8: checkpoints of jobs that are over are left");
  const absl::StatusOr<std::vector<ModelVersion>> versions = store_->Versions("");
  std::map<std::string, int> published;
  std::map<std::string, std::set<int>> numbers;
  std::map<std::string, std::string> tenants;
  for (const ModelVersion& version : *versions) {
    ++published[version.job];
    numbers[version.model].insert(version.version);
    const absl::StatusOr<RecordedJob> job = store_->GetJob(version.job);
    if (tenants.try_emplace(version.model, job->job.tenant).first->second != job->job.tenant ||
        version.tenant != job->job.tenant)
      Violate(absl::StrCat("versions of ", version.model, " are of two tenants"));
    if (job->job.state != JobState::kSucceeded)
      Violate(absl::StrCat("P3: ", version.job, " has a version and is ", StateName(job->job.state)));
    if (job->job.attempt != version.attempt)
      Violate(absl::StrCat("P3: ", version.job, " published attempt ", version.attempt, ", not ", job->job.attempt));
    if (trained_.count(absl::StrCat("jobs/", version.job, "/attempts/", version.attempt)) == 0)
      Violate("P3: published what was never trained");
  }
  for (const auto& [job, count] : published) {
    if (count != 1) Violate(absl::StrCat("P3: ", job, " was published ", count, " times"));
  }
  for (const auto& [model, all] : numbers) {
    int last = 0;
    for (const int number : all) {
      if (number != last + 1 && number % kVersionsPerEpoch != 1)
        Violate(absl::StrCat("P3: the versions of ", model, " have a gap before ", number));
      last = number;
    }
  }
}

}  // namespace luthier
