// Agents: how they start, leave and crash, their sessions, and what they report.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/attempt.h"

namespace luthier {
namespace {

// What an agent that is asked to end gives its trainers, and itself to hand over its last reports.
constexpr absl::Duration kLeaveGrace = absl::Seconds(20), kLeavePatience = absl::Seconds(40);

template <typename Message>
Processes ProcessesOf(const Message& message) {
  Processes processes;
  for (const v1::AttemptProcess& process : message.processes())
    processes[process.attempt()] = {process.gpus().begin(), process.gpus().end()};
  return processes;
}

// As server/rpc/convert reads it.
Report ReportOf(const v1::AttemptReport& message, const std::string& node) {
  Report report{.attempt = *ParseAttemptName(message.attempt()), .node = node, .sequence = message.sequence()};
  std::string type;
  if (message.has_trainer_event()) {
    const auto& fields = message.trainer_event().fields();
    type = fields.at("event").string_value();
    if (const auto speed = fields.find("tokens_per_second"); speed != fields.end())
      report.tokens_per_second = speed->second.number_value();
    if (type == "started") report.input = JobInput::kTrainerStarted;
    if (type == "finished") report.input = JobInput::kTrainerFinished;
  } else if (message.has_artifact_stored()) {
    type = "artifact_stored";
    report.input = JobInput::kArtifactStored;
    report.version_bytes = kVersionBytes;
  } else if (message.has_checkpoint_stored()) {
    type = "checkpoint_stored";
    const int64_t step = message.checkpoint_stored().step();
    report.checkpoint = {step, absl::StrCat(message.attempt(), " step ", step), step * kCheckpointBytesAStep};
  } else {
    const v1::AttemptEnded& ended = message.ended();
    type = v1::AttemptEnded::Outcome_Name(ended.outcome());
    // FINISHED without a publication before it is an attempt whose result is gone.
    report.input = ended.outcome() == v1::AttemptEnded::FAILED    ? JobInput::kAttemptFailed
                   : ended.outcome() == v1::AttemptEnded::STOPPED ? JobInput::kAttemptStopped
                                                                  : JobInput::kAttemptLost;
    report.crashed = ended.cause() == "CRASHED";
    report.lost_peer = ended.cause() == "PEER";
  }
  report.events.push_back({.type = type});
  return report;
}

}  // namespace

void Simulation::StartAgent(Agent& agent) {
  Say(absl::StrCat("agent ", agent.node, " starts"));
  agent.roster = std::make_unique<Roster>([this, &agent](AttemptPath name, const v1::StartAttempt& order) {
    return std::make_shared<Attempt>(*this, agent, std::move(name), order);
  });
  for (const auto& [name, journal] : agent.journals)
    agent.roster->TakeOver(std::make_shared<Attempt>(*this, agent, *AttemptPath::Parse(name)));
  Dial(agent);
}

void Simulation::CrashAgent(Agent& agent) {
  if (agent.roster == nullptr) return;
  Say(absl::StrCat("agent ", agent.node, " crashes"));
  EndAgent(agent);
  // What had not been synced may be on the disk or not.
  for (auto& [name, journal] : agent.journals) {
    const int64_t unsure = journal.last() - journal.durable;
    const int64_t last = journal.durable + (unsure > 0 ? random_.Below(static_cast<int>(unsure) + 1) : 0);
    journal.reports.resize(static_cast<size_t>(last - journal.base));
    journal.durable = last;
  }
}

// Its trainers die with it.
void Simulation::EndAgent(Agent& agent) {
  agent.roster.reset();
  ++agent.life;
  Break(agent);
  At(random_.Between(absl::Seconds(1), absl::Seconds(60)), [this, &agent] {
    if (agent.roster == nullptr) StartAgent(agent);
  });
}

// As luthier-worker does it when it is asked to end.
void Simulation::Leave(Agent& agent) {
  if (agent.roster == nullptr || agent.roster->leaving()) return;
  Say(absl::StrCat("agent ", agent.node, " leaves"));
  ++counts_.departures;
  agent.roster->Leave();
  Heartbeat(agent);
  for (const auto& [name, entry] : agent.roster->entries()) static_cast<Attempt&>(*entry).Suspend(kLeaveGrace);
  WaitForAttempts(agent, now_ + kLeaveGrace + kLeavePatience);
}

void Simulation::WaitForAttempts(Agent& agent, absl::Time until) {
  const auto any = [&](auto&& is) {
    return std::any_of(agent.roster->entries().begin(), agent.roster->entries().end(),
                       [&](const auto& entry) { return is(static_cast<const Attempt&>(*entry.second)); });
  };
  const bool busy = any([](const Attempt& attempt) { return !attempt.is_done(); });
  const bool unheard = any([](const Attempt& attempt) { return attempt.backlog() > 0; });
  if (!busy && (!unheard || !agent.registered || now_ >= until)) {
    Say(absl::StrCat("agent ", agent.node, " has left"));
    for (auto& [name, journal] : agent.journals) journal.durable = journal.last();
    return EndAgent(agent);
  }
  At(absl::Seconds(1), [this, &agent, until, life = agent.life] {
    if (agent.life == life) WaitForAttempts(agent, until);
  });
}

// Of an attempt that is settled nothing is kept.
void Simulation::Tidy(Agent& agent) {
  std::vector<std::string> settled;
  for (const auto& [name, entry] : agent.roster->entries()) {
    if (entry->settled()) settled.push_back(name);
  }
  for (const std::string& name : settled) {
    agent.roster->Remove(name);
    agent.journals.erase(name);
  }
}

// Whether a call from there arrives.
bool Simulation::Reaches(const Agent& agent) const { return state_.has_value() && now_ >= agent.partitioned_until; }

void Simulation::Dial(Agent& agent) {
  if (agent.roster == nullptr || agent.link != 0) return;
  if (!Reaches(agent)) {
    At(random_.Between(absl::Milliseconds(500), absl::Seconds(5)), [this, &agent, life = agent.life] {
      if (agent.life == life) Dial(agent);
    });
    return;
  }
  const int id = agent.link = ++last_link_;
  agent.link_since = now_;
  links_[id] = {.node = agent.node, .server_life = server_life_, .to_server = now_, .to_agent = now_};
  Register(agent, id);
  // Heartbeats for as long as the session lasts.
  const auto beat = std::make_shared<std::function<void()>>();
  *beat = [this, &agent, id, beat] {
    if (agent.link != id) return;
    Heartbeat(agent);
    At(kHeartbeatInterval, *beat);
  };
  At(kHeartbeatInterval, *beat);
}

void Simulation::Heartbeat(Agent& agent) {
  if (!agent.registered) return;
  v1::Heartbeat message;
  agent.roster->Describe(message);
  ToServer(agent, [this, node = agent.node, processes = ProcessesOf(message), leaving = message.leaving()] {
    Post(
        [node, processes, leaving](State& state, absl::Time now) {
          state.Heartbeat(node, "", processes, leaving, now);
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
  });
}

void Simulation::Register(Agent& agent, int id) {
  v1::Register message;
  message.set_node_id(agent.node);
  agent.roster->Describe(message);
  ToServer(agent, [this, message, id] {
    const auto before = sessions_.find(message.node_id());
    if (before != sessions_.end() && before->second != id) ToAgent(before->second, [this](Agent& a) { Break(a); });
    sessions_[message.node_id()] = id;
    const auto registered = std::make_shared<v1::Registered>();
    Post(
        [this, message, registered](State& state, absl::Time now) {
          *registered = Registered(state, message, now);
          return absl::OkStatus();
        },
        [this, id, registered](const absl::Status& status) {
          if (!status.ok()) return ToAgent(id, [this](Agent& a) { Break(a); });
          links_[id].registered = true;
          ToAgent(id, [this, registered](Agent& a) {
            a.registered = true;
            a.roster->OnRegistered(*registered);
            Tidy(a);
            SendReports(a);
          });
          for (auto& order : std::exchange(links_[id].held, {})) ToAgent(id, std::move(order));
        });
  });
}

// As server/rpc/sessions answers.
v1::Registered Simulation::Registered(State& state, const v1::Register& message, absl::Time now) {
  const std::string& id = message.node_id();
  Node node{.id = id, .devices = agents_.at(id).devices, .gpus = true, .gang_address = id, .gang_port = 29400};
  node.processes = ProcessesOf(message);
  const std::vector<std::string> attempts(message.attempts().begin(), message.attempts().end());
  const std::vector<std::string> stale = state.Register(std::move(node), attempts, now);
  v1::Registered registered;
  registered.mutable_stale_attempts()->Add(stale.begin(), stale.end());
  for (const std::string& name : attempts) {
    const std::optional<AttemptId> attempt = ParseAttemptName(name);
    if (!state.IsCurrent(*attempt) || std::count(stale.begin(), stale.end(), name) > 0) continue;
    const Job& job = *state.Find(attempt->job);
    v1::ReportAck& ack = *registered.add_acks();
    ack.set_attempt(name);
    ack.set_sequence(job.node == id ? job.last_report : 0);
  }
  return registered;
}

void Simulation::SendReports(Agent& agent) {
  if (!agent.registered) return;
  const auto send = [&](const v1::AttemptReport& report) {
    ToServer(agent, [this, report, link = agent.link] { ReceiveReport(report, link); });
  };
  while (const std::optional<v1::AttemptReport> report = agent.roster->NextOfUnknown()) send(*report);
  for (const auto& [name, entry] : agent.roster->entries()) {
    while (const std::optional<v1::AttemptReport> report = static_cast<Attempt&>(*entry).NextReport()) send(*report);
  }
}

void Simulation::ReceiveReport(const v1::AttemptReport& message, int link) {
  struct Outcome {
    bool current = false, crashed = false;
  };
  const auto outcome = std::make_shared<Outcome>();
  const std::string& node = links_[link].node;
  Post(
      [this, report = ReportOf(message, node), outcome, link](State& state, absl::Time now) -> absl::Status {
        if (links_[link].refused) return absl::AbortedError("a report before it was refused");
        const Job* job = state.Find(report.attempt.job);
        const bool replaced = job == nullptr || job->attempt != report.attempt.attempt;
        // What dies after it was told to stop says nothing of its job, nor does what nobody needs any more.
        outcome->crashed = report.crashed && job != nullptr && NeedsAllNodes(job->state);
        const int64_t before = job != nullptr && job->node == report.node ? job->last_report : report.sequence;
        outcome->current = state.Record(report, now);
        if (outcome->current && report.sequence > before + 1) {
          Violate(absl::StrCat("P5: report ", report.sequence, " of ", AttemptName(report.attempt),
                               " was taken without those after ", before));
        }
        if (outcome->current && replaced) {
          Violate(absl::StrCat("P3: a report of ", AttemptName(report.attempt),
                               " was taken, which is not the current one"));
        }
        return absl::OkStatus();
      },
      [this, message, outcome, link, node](const absl::Status& status) {
        if (!status.ok()) {
          links_[link].refused = true;  // as server/rpc/sessions does it: what is under way behind it is not taken
          return ToAgent(link, [this](Agent& a) { Break(a); });
        }
        if (outcome->current && outcome->crashed) crashed_on_[ParseAttemptName(message.attempt())->job].insert(node);
        v1::ReportAck ack;
        ack.set_attempt(message.attempt());
        ack.set_sequence(message.sequence());
        ToAgent(link, [this, ack](Agent& a) {
          a.roster->OnAck(ack);
          Tidy(a);
        });
        if (outcome->current || message.has_ended()) return;
        v1::StopAttempt stop;
        stop.set_attempt(message.attempt());
        ToAgent(link, [this, stop](Agent& a) { OnStop(a, stop); });
      });
}

// P5: nothing but a user, a drain or a newer attempt ends what the record says is running.
void Simulation::OnStop(Agent& agent, const v1::StopAttempt& order) {
  const AttemptId id = *ParseAttemptName(order.attempt());
  if (store_ != nullptr) {
    const absl::StatusOr<std::optional<Job>> job = store_->FindJob(id.job);
    if (job.ok() && *job && (*job)->attempt == id.attempt &&
        ((*job)->state == JobState::kRunning || (*job)->state == JobState::kStarting)) {
      Violate(absl::StrCat("P5: ", order.attempt(), " was told to stop though it is current and ",
                           StateName((*job)->state)));
    }
  }
  agent.roster->OnStop(order);
  SendReports(agent);
}

}  // namespace luthier
