// Attempts on their nodes: their processes, what they train, and the reports of them.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulation.h"

namespace luthier {
namespace {

// The ranks of a part wait for those of the other one so long, and the agent of one that lost its peer so long for the
// server's word, since the node with the culprit has more to say.
constexpr absl::Duration kMeetingPatience = absl::Minutes(5), kServersWord = absl::Seconds(10);

bool Overlap(const std::vector<int>& a, const std::vector<int>& b) {
  return std::any_of(a.begin(), a.end(), [&](int device) { return std::count(b.begin(), b.end(), device) > 0; });
}

luthier::Report ReportOf(const AttemptId& id, const std::string& node, int64_t sequence, const std::string& event,
                         int64_t step) {
  luthier::Report report;
  report.attempt = id;
  report.node = node;
  report.sequence = sequence;
  report.events.push_back({.type = event});
  if (event == "checkpoint")
    report.checkpoint = {step, absl::StrCat(AttemptName(id), " step ", step), step * kCheckpointBytesAStep};
  if (event == "stored") report.version_bytes = kVersionBytes;
  if (event == "started") report.input = JobInput::kTrainerStarted;
  if (event == "finished") report.input = JobInput::kTrainerFinished;
  if (event == "stored") report.input = JobInput::kArtifactStored;
  if (event == "FAILED") report.input = JobInput::kAttemptFailed;
  if (event == "STOPPED") report.input = JobInput::kAttemptStopped;
  if (event == "LOST" || event == "CRASHED" || event == "PEER" || event == "FINISHED")
    report.input = JobInput::kAttemptLost;  // FINISHED after `stored` changes nothing
  report.crashed = event == "CRASHED";
  report.lost_peer = event == "PEER";
  return report;
}

}  // namespace

void Simulation::SendReports(Agent& agent) {
  if (!agent.registered) return;
  for (auto& [name, attempt] : agent.attempts) {
    for (const Entry& entry : attempt.reports) {
      if (entry.sequence <= agent.sent[name]) continue;
      agent.sent[name] = entry.sequence;
      const int link = agent.link;
      ToServer(agent, [this, name = name, id = attempt.id, node = agent.node, entry, link] {
        const auto current = std::make_shared<bool>(false);
        const bool ends = entry.event == "FINISHED" || entry.event == "LOST" || entry.event == "CRASHED" ||
                          entry.event == "PEER" || entry.event == "STOPPED" || entry.event == "FAILED";
        const auto crashed = std::make_shared<bool>(false);
        Post(
            [this, id, node, entry, current, crashed](State& state, absl::Time now) {
              const Job* job = state.Find(id.job);
              const bool replaced = job == nullptr || job->attempt != id.attempt;
              // What dies after it was told to stop says nothing of its job, nor does what nobody needs any more.
              *crashed = entry.event == "CRASHED" && job != nullptr && NeedsAllNodes(job->state);
              *current = state.Record(ReportOf(id, node, entry.sequence, entry.event, entry.step), now);
              if (*current && replaced) {
                Violate(absl::StrCat("P3: a report of ", AttemptName(id), " was taken, which is not the current one"));
              }
              return absl::OkStatus();
            },
            [this, name, id, entry, link, current, crashed, ends](const absl::Status& status) {
              if (!status.ok()) {  // a later report would leave a gap
                ToAgent(link, [this](Agent& a) { Break(a); });
                return;
              }
              if (*current && *crashed) crashed_on_[id.job].insert(links_[link].node);
              ToAgent(link, [this, name, entry](Agent& a) {
                const auto found = a.attempts.find(name);
                if (found == a.attempts.end()) return;
                std::erase_if(found->second.reports, [&](const Entry& e) { return e.sequence <= entry.sequence; });
                if (found->second.ended && found->second.reports.empty()) Remove(a, name);
              });
              if (!*current && !ends) {
                ToAgent(link, [this, name](Agent& a) { OnStop(a, name); });
              }
            });
      });
    }
  }
}

void Simulation::Report(Agent& agent, Attempt& attempt, const std::string& event, int64_t step) {
  attempt.reports.push_back({++attempt.last_sequence, step, event});
  if (agent.up) SendReports(agent);
}

void Simulation::OnStart(Agent& agent, Attempt attempt) {
  const std::string name = AttemptName(attempt.id);
  if (agent.attempts.count(name) > 0) return;
  // One attempt of a job is current, and it is the new one.
  std::vector<std::string> older;
  for (const auto& [other, known] : agent.attempts) {
    if (known.id.job == attempt.id.job) older.push_back(other);
  }
  for (const std::string& other : older) {
    Kill(agent, other, absl::ZeroDuration());
    Remove(agent, other);
  }
  const int rank = attempt.gang ? attempt.gang->node_rank : 0;
  Say(absl::StrCat(agent.node, " gets ", name, rank > 0 ? " and follows" : ""));
  if (rank == 0) {
    ++counts_.attempts;
    if (attempt.gang) ++counts_.gangs;
    if (attempt.first_step > 0) ++counts_.resumptions;
  }
  agent.attempts[name] = std::move(attempt);
  Begin(agent, name);
}

void Simulation::Begin(Agent& agent, const std::string& name) {
  const auto found = agent.attempts.find(name);
  if (found == agent.attempts.end() || found->second.ended) return;
  for (const Process& process : agent.processes) {
    if (!Overlap(process.devices, found->second.devices)) continue;
    return Violate(
        absl::StrCat("P6: ", name, " was given devices of ", agent.node, " that ", process.attempt, " uses"));
  }
  const std::optional<GangPlace>& gang = found->second.gang;
  agent.processes.push_back(
      {.attempt = name, .devices = found->second.devices, .node_rank = gang ? gang->node_rank : 0});
  At(random_.Between(absl::Milliseconds(100), absl::Seconds(2)), [this, node = agent.node, name, life = agent.life] {
    Agent& a = agents_[node];
    if (a.life == life && a.attempts.count(name) > 0) Meet(a, name, now_ + kMeetingPatience);
  });
}

// Ranks on one node do not wait for another.
void Simulation::Meet(Agent& agent, const std::string& name, absl::Time until) {
  if (!Alive(agent, name)) return;
  const Attempt& attempt = agent.attempts.at(name);
  if (!attempt.gang || HasPeer(agent, name)) {
    return attempt.gang && attempt.gang->node_rank > 0 ? Follow(agent, name) : Train(agent, name, attempt.first_step);
  }
  if (now_ >= until) return LosePeer(agent, name);
  At(absl::Seconds(1), [this, node = agent.node, name, until, life = agent.life] {
    if (agents_[node].life == life) Meet(agents_[node], name, until);
  });
}

// A part that does not lead: it ends with the other one.
void Simulation::Follow(Agent& agent, const std::string& name) {
  if (!Alive(agent, name)) return;
  if (trained_.count(name) > 0) return End(agent, name, "STOPPED");
  if (!HasPeer(agent, name)) return LosePeer(agent, name);
  if (random_.Chance(fates_.at(agent.attempts.at(name).id.job).crash * 0.02)) return End(agent, name, "CRASHED");
  At(random_.Between(absl::Seconds(1), absl::Seconds(3)), [this, node = agent.node, name, life = agent.life] {
    if (agents_[node].life == life) Follow(agents_[node], name);
  });
}

void Simulation::LosePeer(Agent& agent, const std::string& name) {
  std::erase_if(agent.processes, [&](const Process& p) { return p.attempt == name; });
  ++counts_.lost_peers;
  At(kServersWord, [this, node = agent.node, name, life = agent.life] {
    if (agents_[node].life == life) End(agents_[node], name, "PEER");
  });
}

bool Simulation::HasPeer(const Agent& agent, const std::string& name) const {
  return std::any_of(agents_.begin(), agents_.end(),
                     [&](const auto& other) { return other.first != agent.node && Alive(other.second, name); });
}

bool Simulation::Alive(const Agent& agent, const std::string& name) const {
  return std::any_of(agent.processes.begin(), agent.processes.end(),
                     [&](const Process& p) { return p.attempt == name && !p.dying; });
}

void Simulation::Train(Agent& agent, const std::string& name, int64_t step) {
  constexpr int kSteps = 3;
  if (!Alive(agent, name)) return;
  Attempt& attempt = agent.attempts.at(name);
  const Fate& fate = fates_.at(attempt.id.job);
  if (attempt.gang && !HasPeer(agent, name)) return LosePeer(agent, name);
  if (step == attempt.first_step) Report(agent, attempt, "started");
  if (step > 0 && fate.user_error) return End(agent, name, "FAILED");
  if (step > 0 && random_.Chance(fate.crash)) return End(agent, name, "CRASHED");
  if (step == kSteps) {
    trained_.insert(name);
    attempt.finished = true;
    Report(agent, attempt, "finished");
    std::erase_if(agent.processes, [&](const Process& p) { return p.attempt == name; });
    At(random_.Between(absl::Milliseconds(10), absl::Seconds(5)), [this, node = agent.node, name, life = agent.life] {
      if (agents_[node].life == life) Publish(agents_[node], name);
    });
    return;
  }
  if (step > attempt.first_step) Report(agent, attempt, random_.Chance(0.7) ? "checkpoint" : "progress", step);
  At(fate.training / kSteps, [this, node = agent.node, name, step, life = agent.life] {
    if (agents_[node].life == life) Train(agents_[node], name, step + 1);
  });
}

// The upload succeeds only while the attempt is the current one, as the store refuses others.
void Simulation::Publish(Agent& agent, const std::string& name) {
  const auto found = agent.attempts.find(name);
  if (found == agent.attempts.end() || found->second.ended || found->second.stored) return;
  if (found->second.stop_asked) return End(agent, name, "STOPPED");
  if (!state_ || disk_full_) {  // the server is away or full: that passes
    At(absl::Seconds(2), [this, node = agent.node, name, life = agent.life] {
      if (agents_[node].life == life) Publish(agents_[node], name);
    });
    return;
  }
  found->second.stored = true;
  Report(agent, found->second, "stored");
  End(agent, name, "FINISHED");
}

void Simulation::OnStop(Agent& agent, const std::string& name) {
  const std::optional<AttemptId> id = ParseAttemptName(name);
  const auto found = agent.attempts.find(name);
  if (found == agent.attempts.end()) {
    agent.attempts[name] = {.id = *id};
    return End(agent, name, "STOPPED");
  }
  Attempt& attempt = found->second;
  // P5: nothing but a user, a drain or a newer attempt ends what the record says is running.
  if (store_ != nullptr) {
    const absl::StatusOr<std::optional<Job>> job = store_->FindJob(id->job);
    if (job.ok() && *job && (*job)->attempt == id->attempt &&
        ((*job)->state == JobState::kRunning || (*job)->state == JobState::kStarting)) {
      Violate(absl::StrCat("P5: ", name, " was told to stop though it is current and ", StateName((*job)->state)));
    }
  }
  if (attempt.ended || attempt.stop_asked) return;
  attempt.stop_asked = true;
  if (Alive(agent, name)) {
    Kill(agent, name, random_.Between(absl::Milliseconds(100), absl::Seconds(20)));
  } else if (!attempt.finished) {
    End(agent, name, "STOPPED");  // it waits for devices
  }
}

// Ends the process within `patience`, then reports STOPPED if it was asked to.
void Simulation::Kill(Agent& agent, const std::string& name, absl::Duration patience) {
  for (Process& process : agent.processes) {
    if (process.attempt == name) process.dying = true;
  }
  At(patience + random_.Between(absl::Milliseconds(10), absl::Milliseconds(500)),
     [this, node = agent.node, name, life = agent.life] {
       Agent& a = agents_[node];
       if (a.life != life) return;
       std::erase_if(a.processes, [&](const Process& p) { return p.attempt == name; });
       const auto found = a.attempts.find(name);
       if (found != a.attempts.end() && found->second.stop_asked) End(a, name, "STOPPED");
       Heartbeat(a);  // a stale attempt reports nothing
     });
}

void Simulation::End(Agent& agent, const std::string& name, const std::string& outcome) {
  std::erase_if(agent.processes, [&](const Process& p) { return p.attempt == name; });
  const auto found = agent.attempts.find(name);
  if (found == agent.attempts.end() || std::exchange(found->second.ended, true)) return;
  Report(agent, found->second, outcome);
}

void Simulation::Remove(Agent& agent, const std::string& name) { agent.attempts.erase(name); }

}  // namespace luthier
