#include "tests/simulation/simulation.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/loop/recorded_jobs.h"

namespace luthier {
namespace {

constexpr int kNodes = 4;
constexpr int kRequests = 24;
constexpr absl::Duration kStorm = absl::Minutes(15);
constexpr absl::Duration kCalm = absl::Hours(12);  // long enough for every retry with its delay
constexpr absl::Duration kTick = absl::Milliseconds(500);

std::string NameOf(const AttemptId& id) { return absl::StrCat("jobs/", id.job, "/attempts/", id.attempt); }

bool Overlap(const std::vector<int>& a, const std::vector<int>& b) {
  return std::any_of(a.begin(), a.end(), [&](int device) { return std::count(b.begin(), b.end(), device) > 0; });
}

luthier::Report ReportOf(const AttemptId& id, int64_t sequence, const std::string& event, int64_t step) {
  luthier::Report report;
  report.attempt = id;
  report.sequence = sequence;
  report.events.push_back({.type = event});
  if (event == "checkpoint") report.checkpoint = {step, absl::StrCat(NameOf(id), " step ", step)};
  if (event == "started") report.input = JobInput::kTrainerStarted;
  if (event == "finished") report.input = JobInput::kTrainerFinished;
  if (event == "stored") report.input = JobInput::kArtifactStored;
  if (event == "FAILED") report.input = JobInput::kAttemptFailed;
  if (event == "STOPPED") report.input = JobInput::kAttemptStopped;
  if (event == "LOST" || event == "CRASHED" || event == "FINISHED")
    report.input = JobInput::kAttemptLost;  // FINISHED after `stored` changes nothing
  report.crashed = event == "CRASHED";
  return report;
}

}  // namespace

Simulation::Simulation(uint64_t seed)
    : random_(seed), preempt_after_(random_.Between(absl::ZeroDuration(), absl::Minutes(1))) {}
Simulation::~Simulation() = default;

std::string Simulation::Run() {
  StartServer();
  for (int i = 0; i < kNodes; ++i) {
    Agent& agent = agents_[absl::StrCat("n", i)];
    agent.node = absl::StrCat("n", i);
    agent.devices = i == 0 ? 4 : 1 + random_.Below(4);  // every job fits somewhere
    StartAgent(agent);
  }
  SubmitLater();
  AskSomething();
  FaultLater();
  const absl::Time calm = now_ + kStorm, end = calm + kCalm;
  while (violation_.empty() && !timers_.empty() && now_ < end) {
    const Timer timer = timers_.top();
    timers_.pop();
    now_ = timer.time;
    if (!calm_ && now_ >= calm) {
      calm_ = true;
      disk_full_ = false;
      Say("--- calm");
      if (!state_) StartServer();
      for (auto& [node, agent] : agents_) {
        if (!agent.up) StartAgent(agent);
      }
    }
    timer.action();
    if (calm_ && Settled()) break;
  }
  if (violation_.empty() && !Settled())
    Violate(absl::StrCat("liveness: 12 hours after the last fault there is still", Unsettled()));
  if (violation_.empty()) CheckRecord();
  return violation_;
}

void Simulation::At(absl::Duration delay, std::function<void()> action) {
  timers_.push({now_ + delay, ++order_, std::move(action)});
}

void Simulation::Say(const std::string& text) {
  log_.push_back(absl::StrCat(absl::FormatTime("%H:%M:%E3S", now_, absl::UTCTimeZone()), " ", text));
}

void Simulation::Violate(const std::string& text) {
  Say("VIOLATION " + text);
  if (violation_.empty()) violation_ = text;
}

// --- The server.

void Simulation::StartServer() {
  ++server_life_;
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(folder_.path());
  if (!store.ok()) return Violate("the store does not open: " + store.status().ToString());
  store_ = *std::move(store);
  absl::StatusOr<State> state = store_->LoadState(ServerNow(), {.preempt_after = preempt_after_});
  if (!state.ok()) return Violate("the state does not load: " + state.status().ToString());
  CheckRestart(*state);
  state_.emplace(*std::move(state));
  if (std::exchange(restored_, false)) BeginEpoch();
  // Every time, since the server may have crashed before it was written; there already is fine.
  Post([](State& s, absl::Time) { return s.AddResource(ResourceKind::kBaseModel, {.id = "base"}); },
       [](const absl::Status&) {});
  Say(absl::StrCat("server starts, life ", server_life_));
  const int64_t life = server_life_;
  At(kTick, [this, life] {
    if (life == server_life_) ServerTick();
  });
}

void Simulation::CrashServer(const std::string& when) {
  if (!state_) return;
  Say("server crashes " + when);
  ++counts_.crashes;
  state_.reset();
  store_.reset();
  commands_.clear();
  dones_.clear();
  sessions_.clear();
  batch_planned_ = false;
  ++server_life_;
  for (auto& [node, agent] : agents_) {
    if (agent.link != 0) Break(agent);
  }
  const absl::Duration down = random_.Chance(0.2) ? random_.Between(absl::Seconds(20), absl::Minutes(3))
                                                  : random_.Between(absl::Seconds(1), absl::Seconds(10));
  At(down, [this] {
    if (!state_) StartServer();
  });
}

void Simulation::Post(Command command, Done done) {
  if (!state_) return;
  commands_.push_back(std::move(command));
  dones_.push_back(std::move(done));
  if (std::exchange(batch_planned_, true)) return;
  const int64_t life = server_life_;
  At(random_.Between(absl::Microseconds(100), absl::Milliseconds(5)), [this, life] {
    if (life == server_life_ && state_) RunServerBatch();
  });
}

void Simulation::ServerTick() {
  if (!state_) return;
  if (!batch_planned_) RunServerBatch();
  const int64_t life = server_life_;
  At(kTick, [this, life] {
    if (life == server_life_) ServerTick();
  });
}

void Simulation::RunServerBatch() {
  batch_planned_ = false;
  const std::vector<Command> commands = std::exchange(commands_, {});
  const std::vector<Done> dones = std::exchange(dones_, {});
  bool crash_before = false, crash_after = false;
  const BatchOutcome outcome = RunBatch(*state_, commands, ServerNow(), [&](const Writes& writes) {
    if (!calm_ && random_.Chance(0.004)) {
      crash_before = true;
      return absl::UnavailableError("the process is gone");
    }
    return WriteOrCrash(writes, crash_after);
  });
  if (crash_before) {
    // A process that dies here has sent nothing, unless it answers before it writes.
    const bool answered =
        std::any_of(outcome.statuses.begin(), outcome.statuses.end(), [](const absl::Status& s) { return s.ok(); });
    if (!answered) return CrashServer("before a commit");
  }
  if (crash_after) return CrashServer("after a commit, before it answers");
  if (outcome.written.ok()) {
    RememberCommitted(outcome.writes);
    CheckCheckpoints(outcome.writes);
    if (!outcome.writes.empty() || ++turns_ % 20 == 0) CheckState();
    CheckDecisions(outcome.writes);
    for (const Effect& effect : outcome.effects) Send(effect);
  }
  for (size_t i = 0; i < dones.size(); ++i) dones[i](outcome.statuses[i]);
  if (crash_before) CrashServer("after it answered what it has not written");
}

absl::Status Simulation::WriteOrCrash(const Writes& writes, bool& crash_after) {
  if (disk_full_) {
    last_full_ = now_;
    return absl::UnavailableError("the disk is full");
  }
  const absl::Status written = store_->Commit(writes);
  if (!written.ok()) {
    Violate("a commit failed: " + written.ToString());
    return written;
  }
  ++counts_.commits;
  for (const Event& event : writes.events) {
    if (event.type == "FAILED") {
      for (const Job& job : writes.jobs) {
        if (job.number == event.job && job.attempt == event.attempt) failed_by_user_.insert(job.id);
      }
    }
  }
  if (!calm_ && random_.Chance(0.004)) {
    crash_after = true;
    RememberCommitted(writes);
  }
  return absl::OkStatus();
}

void Simulation::RememberCommitted(const Writes& writes) {
  for (const Job& job : writes.jobs) {
    if (IsTerminal(job.state)) {
      durable_.erase(job.id);
    } else {
      durable_[job.id] = job;
    }
  }
  for (const Writes::CheckpointChange& change : writes.checkpoints) {
    const auto job =
        std::find_if(writes.jobs.begin(), writes.jobs.end(), [&](const Job& j) { return j.number == change.job; });
    if (change.payload) {
      checkpoints_[job->id] = change;
      ++counts_.checkpoints;
    } else {
      checkpoints_.erase(job->id);
    }
  }
}

void Simulation::Send(const Effect& effect) {
  const auto session = sessions_.find(effect.node);
  if (session == sessions_.end()) return;
  const int link = session->second;
  const std::optional<AttemptId> id = ParseAttemptName(effect.attempt);
  switch (effect.kind) {
    case Effect::Kind::kStart:
      Order(link, [this, id, devices = effect.devices, step = StoredStep(effect.job)](Agent& agent) {
        OnStart(agent, *id, devices, step);
      });
      break;
    case Effect::Kind::kStop: Order(link, [this, name = effect.attempt](Agent& agent) { OnStop(agent, name); }); break;
    case Effect::Kind::kCheckpoint: break;
    case Effect::Kind::kReconnect: ToAgent(link, [this](Agent& agent) { Break(agent); }); break;
  }
}

// As the server reads it for the order: the newest that is on record.
int64_t Simulation::StoredStep(int64_t job) {
  const absl::StatusOr<std::string> payload = store_->Checkpoint(job);
  const auto known = std::find_if(checkpoints_.begin(), checkpoints_.end(),
                                  [&](const auto& checkpoint) { return checkpoint.second.job == job; });
  if (payload.ok() != (known != checkpoints_.end()) || (payload.ok() && *payload != *known->second.payload))
    Violate(absl::StrCat("P8: the record has another checkpoint of job ", job, " than was committed"));
  return known == checkpoints_.end() ? 0 : known->second.step;
}

// --- Streams.

void Simulation::ToServer(Agent& agent, std::function<void()> handle) {
  const int id = agent.link;
  if (id == 0) return;
  Link& link = links_[id];
  link.to_server = std::max(link.to_server, now_ + random_.Between(absl::Milliseconds(1), absl::Milliseconds(50)));
  At(link.to_server - now_, [this, id, life = link.server_life, handle = std::move(handle)] {
    if (!state_ || life != server_life_) return;
    // What was under way when the stream broke may arrive late, or never.
    if (links_[id].broken && random_.Chance(0.5)) return;
    handle();
  });
}

void Simulation::ToAgent(int id, std::function<void(Agent&)> handle) {
  Link& link = links_[id];
  link.to_agent = std::max(link.to_agent, now_ + random_.Between(absl::Milliseconds(1), absl::Milliseconds(50)));
  At(link.to_agent - now_, [this, id, handle = std::move(handle)] {
    Agent& agent = agents_[links_[id].node];
    if (agent.link == id && agent.up) handle(agent);
  });
}

// As server/rpc/sessions does it.
void Simulation::Order(int id, std::function<void(Agent&)> handle) {
  Link& link = links_[id];
  if (link.registered) return ToAgent(id, std::move(handle));
  link.held.push_back(std::move(handle));
}

// The agent's end closes now; the server hears of it later, or not before the lease runs out.
void Simulation::Break(Agent& agent) {
  const int id = std::exchange(agent.link, 0);
  if (id == 0) return;
  agent.registered = false;
  Link& link = links_[id];
  link.broken = true;
  ++counts_.breaks;
  const int64_t life = link.server_life;
  At(random_.Between(absl::Milliseconds(1), absl::Seconds(40)), [this, id, life, node = agent.node] {
    if (!state_ || life != server_life_) return;
    const auto session = sessions_.find(node);
    if (session == sessions_.end() || session->second != id) return;  // a newer one replaced it
    sessions_.erase(session);
    Post(
        [node](State& state, absl::Time now) {
          state.Disconnect(node, now);
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
  });
  if (agent.up) {
    At(random_.Between(absl::Milliseconds(200), absl::Seconds(3)), [this, node = agent.node, life = agent.life] {
      if (agents_[node].life == life) Dial(agents_[node]);
    });
  }
}

// --- Agents.

void Simulation::StartAgent(Agent& agent) {
  agent.up = true;
  Say(absl::StrCat("agent ", agent.node, " starts"));
  // What an earlier life left: its trainers died with it.
  for (auto& [name, attempt] : agent.attempts) {
    if (attempt.ended) continue;
    if (attempt.finished && !attempt.stored && !attempt.stop_asked) {
      At(random_.Between(absl::Milliseconds(10), absl::Seconds(2)),
         [this, node = agent.node, name = name, life = agent.life] {
           if (agents_[node].life == life) Publish(agents_[node], name);
         });
    } else if (attempt.stored) {
      Report(agent, attempt, "FINISHED");
      attempt.ended = true;
    } else {
      Report(agent, attempt, "LOST");
      attempt.ended = true;
    }
  }
  Dial(agent);
}

void Simulation::CrashAgent(Agent& agent) {
  if (!agent.up) return;
  Say(absl::StrCat("agent ", agent.node, " crashes"));
  agent.up = false;
  ++agent.life;
  agent.processes.clear();
  Break(agent);
  At(random_.Between(absl::Seconds(1), absl::Seconds(60)), [this, node = agent.node] {
    if (!agents_[node].up) StartAgent(agents_[node]);
  });
}

void Simulation::Dial(Agent& agent) {
  if (!agent.up || agent.link != 0) return;
  if (!state_ || now_ < agent.partitioned_until) {
    At(random_.Between(absl::Milliseconds(500), absl::Seconds(5)), [this, node = agent.node, life = agent.life] {
      if (agents_[node].life == life) Dial(agents_[node]);
    });
    return;
  }
  agent.link = ++last_link_;
  agent.link_since = now_;
  links_[agent.link] = {.node = agent.node, .server_life = server_life_, .to_server = now_, .to_agent = now_};
  Register(agent, agent.link);
  const int id = agent.link;
  // Heartbeats for as long as the session lasts.
  const auto beat = std::make_shared<std::function<void()>>();
  *beat = [this, node = agent.node, id, beat] {
    Agent& beating = agents_[node];
    if (beating.link != id) return;
    Heartbeat(beating);
    At(kHeartbeatInterval, *beat);
  };
  At(kHeartbeatInterval, *beat);
}

void Simulation::Heartbeat(Agent& agent) {
  ToServer(agent, [this, node = agent.node, processes = ProcessesOf(agent)] {
    Post(
        [node, processes](State& state, absl::Time now) {
          state.Heartbeat(node, "", processes, false, now);
          return absl::OkStatus();
        },
        [](const absl::Status&) {});
  });
}

Processes Simulation::ProcessesOf(const Agent& agent) {
  Processes processes;
  for (const Process& process : agent.processes) processes[process.attempt] = process.devices;
  return processes;
}

void Simulation::Register(Agent& agent, int id) {
  std::vector<std::string> attempts;
  for (const auto& [name, attempt] : agent.attempts) attempts.push_back(name);
  ToServer(agent, [this, node = agent.node, devices = agent.devices, processes = ProcessesOf(agent), attempts, id] {
    const auto before = sessions_.find(node);
    if (before != sessions_.end() && before->second != id) ToAgent(before->second, [this](Agent& a) { Break(a); });
    sessions_[node] = id;
    const auto stale = std::make_shared<std::vector<std::string>>();
    const auto acks = std::make_shared<std::map<std::string, int64_t>>();
    Post(
        [node, devices, processes, attempts, stale, acks](State& state, absl::Time now) {
          Node registered{.id = node, .devices = devices, .gpus = true};
          registered.processes = processes;
          *stale = state.Register(std::move(registered), attempts, now);
          for (const std::string& name : attempts) {
            const std::optional<AttemptId> attempt = ParseAttemptName(name);
            if (attempt && state.IsCurrent(*attempt)) (*acks)[name] = state.Find(attempt->job)->last_report;
          }
          return absl::OkStatus();
        },
        [this, id, stale, acks](const absl::Status& status) {
          if (!status.ok()) {
            ToAgent(id, [this](Agent& a) { Break(a); });
            return;
          }
          links_[id].registered = true;
          ToAgent(id, [this, stale, acks](Agent& a) {
            a.registered = true;
            a.sent.clear();
            for (const std::string& name : *stale) {
              Kill(a, name, absl::ZeroDuration());
              Remove(a, name);
            }
            for (auto& [name, attempt] : a.attempts) {
              const int64_t acknowledged = acks->count(name) > 0 ? acks->at(name) : 0;
              std::erase_if(attempt.reports, [&](const Entry& entry) { return entry.sequence <= acknowledged; });
              a.sent[name] = acknowledged;
            }
            SendReports(a);
          });
          for (auto& order : std::exchange(links_[id].held, {})) ToAgent(id, std::move(order));
        });
  });
}

void Simulation::SendReports(Agent& agent) {
  if (!agent.registered) return;
  for (auto& [name, attempt] : agent.attempts) {
    for (const Entry& entry : attempt.reports) {
      if (entry.sequence <= agent.sent[name]) continue;
      agent.sent[name] = entry.sequence;
      const int link = agent.link;
      ToServer(agent, [this, name = name, id = attempt.id, entry, link] {
        const auto current = std::make_shared<bool>(false);
        const bool ends = entry.event == "FINISHED" || entry.event == "LOST" || entry.event == "CRASHED" ||
                          entry.event == "STOPPED" || entry.event == "FAILED";
        const auto crashed = std::make_shared<bool>(false);
        Post(
            [this, id, entry, current, crashed](State& state, absl::Time now) {
              const Job* job = state.Find(id.job);
              const bool replaced = job == nullptr || job->attempt != id.attempt;
              // What dies after it was told to stop says nothing of its job.
              *crashed = entry.event == "CRASHED" && job != nullptr && !IsStopping(job->state);
              *current = state.Record(ReportOf(id, entry.sequence, entry.event, entry.step), now);
              if (*current && replaced)
                Violate(absl::StrCat("P3: a report of ", NameOf(id), " was taken, which is not the current attempt"));
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

void Simulation::OnStart(Agent& agent, const AttemptId& id, const std::vector<int>& devices, int64_t first_step) {
  const std::string name = NameOf(id);
  if (agent.attempts.count(name) > 0) return;
  // One attempt of a job is current, and it is the new one.
  std::vector<std::string> older;
  for (const auto& [other, attempt] : agent.attempts) {
    if (attempt.id.job == id.job) older.push_back(other);
  }
  for (const std::string& other : older) {
    Kill(agent, other, absl::ZeroDuration());
    Remove(agent, other);
  }
  Say(absl::StrCat(agent.node, " gets ", name));
  ++counts_.attempts;
  if (first_step > 0) ++counts_.resumptions;
  agent.attempts[name] = {.id = id, .devices = devices, .first_step = first_step};
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
  agent.processes.push_back({name, found->second.devices});
  At(random_.Between(absl::Milliseconds(100), absl::Seconds(2)), [this, node = agent.node, name, life = agent.life] {
    Agent& a = agents_[node];
    if (a.life == life && a.attempts.count(name) > 0) Train(a, name, a.attempts[name].first_step);
  });
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

// --- Users.

void Simulation::SubmitLater() {
  for (int i = 0; i < kRequests; ++i) {
    auto request = std::make_shared<Request>();
    request->id = absl::StrCat("request-", i);
    request->body = absl::StrCat("body-", i);
    request->job.id = absl::StrCat("j", i);
    request->job.base_model = "base";
    request->job.tenant = random_.Chance(0.5) ? "a" : "b";
    request->job.service_class = kServiceClasses[static_cast<size_t>(random_.Below(3))];
    request->job.devices = 1 + (random_.Chance(0.3) ? random_.Below(4) : 0);
    if (random_.Chance(0.2)) request->job.model = "shared-model";
    if (random_.Chance(0.1)) request->job.state = JobState::kHeld;
    if (i % 8 == 7) {
      request->sweep = std::exchange(request->job.id, request->job.id + "-1");
      request->job.state = JobState::kQueued;  // nobody would start the others
    }
    for (int k = 1; k <= kJobsOfASweep; ++k) {
      fates_[request->sweep.empty() ? request->job.id : absl::StrCat(request->sweep, "-", k)] = {
          .training = random_.Between(absl::Seconds(1), absl::Minutes(2)),
          .crash = random_.Chance(0.05)  ? 1.0
                   : random_.Chance(0.2) ? 0.3
                                         : 0.0,
          .user_error = random_.Chance(0.1)};
    }
    requests_.push_back(request);
    At(random_.Between(absl::ZeroDuration(), kStorm * 0.8), [this, request] { Submit(request); });
  }
}

// Again and again with the same id until it is answered, now and then twice at once.
void Simulation::Submit(const std::shared_ptr<Request>& request) {
  if (request->acknowledged) return;
  const int copies = ++request->tries > 1 || random_.Chance(0.8) ? 1 : 2;
  for (int copy = 0; copy < copies; ++copy) {
    if (!calm_ && random_.Chance(0.1)) continue;  // lost on the way
    At(random_.Between(absl::Milliseconds(1), absl::Milliseconds(200)), [this, request] {
      if (!state_) return;
      const auto job = std::make_shared<Job>(request->job);
      Post([this, request, job](State& state, absl::Time now) { return Create(state, *request, *job, now); },
           [this, request, job](const absl::Status& status) {
             if (absl::IsAlreadyExists(status)) request->job.model.clear();  // another tenant's: the user takes another
             if (!status.ok()) return;
             if (!calm_ && random_.Chance(0.1)) return;  // the answer is lost
             At(random_.Between(absl::Milliseconds(1), absl::Milliseconds(200)),
                [this, request, job, restorations = counts_.restorations] {
                  if (restorations != counts_.restorations)
                    return;  // the record of it may be lost: the user asks again
                  if (request->acknowledged && *request->acknowledged != job->id)
                    Violate("P2: one request made two jobs");
                  if (!request->acknowledged) ++counts_.jobs;
                  request->acknowledged = job->id;
                });
           });
    });
  }
  At(random_.Between(absl::Seconds(1), absl::Seconds(5)), [this, request] { Submit(request); });
}

absl::Status Simulation::Create(State& state, const Request& request, Job& job, absl::Time now) {
  const JobRequest identity{request.id, request.body};
  if (request.sweep.empty()) return CreateJob(state, *store_, job, identity, {.own = "spec"}, now);
  std::vector<Job> jobs(kJobsOfASweep, job);
  for (Job& of_sweep : jobs) of_sweep.max_parallel = kParallelOfASweep;
  for (int k = 0; k < kJobsOfASweep; ++k) jobs[static_cast<size_t>(k)].id = absl::StrCat(request.sweep, "-", k + 1);
  Sweep sweep{.id = request.sweep, .tenant = job.tenant};
  const absl::Status status =
      CreateSweep(state, *store_, sweep, jobs, identity, std::vector<SpecBytes>(kJobsOfASweep), now);
  job = jobs.front();
  return status;
}

void Simulation::AskSomething() {
  if (!calm_) {
    const std::string job = requests_[static_cast<size_t>(random_.Below(kRequests))]->job.id;
    static constexpr const char* kWishes[] = {"cancel", "pause",    "resume", "start",
                                              "retry",  "priority", "drain",  "undrain"};
    Ask(job, kWishes[random_.Below(8)]);
    At(random_.Between(absl::Seconds(2), absl::Seconds(20)), [this] { AskSomething(); });
    return;
  }
  // What was left waiting for a user goes on.
  for (const auto& request : requests_) {
    Ask(request->job.id, "resume");
    Ask(request->job.id, "start");
  }
  Ask("", "undrain");
  At(absl::Minutes(2), [this] { AskSomething(); });
}

void Simulation::Ask(const std::string& job, const std::string& what) {
  if (!state_) return;
  const std::string node = absl::StrCat("n", random_.Below(kNodes));
  const bool requeue = random_.Chance(0.5);
  const int priority = random_.Below(5);
  Post(
      [this, job, what, node, requeue, priority](State& state, absl::Time now) -> absl::Status {
        if (what == "drain") return state.Drain(node, requeue, now);
        if (what == "undrain") {
          for (int i = 0; i < kNodes; ++i) (void)state.Undrain(absl::StrCat("n", i));
          return absl::OkStatus();
        }
        if (absl::Status status = BringIn(state, *store_, job); !status.ok()) return status;
        if (what == "retry") {
          cancelled_.erase(job);
          failed_by_user_.erase(job);
          crashed_on_.erase(job);
          return state.Retry(job, now);
        }
        if (what == "cancel") return state.Cancel(job, now);
        if (what == "pause") return state.Pause(job, now);
        if (what == "resume") return state.Resume(job, now);
        if (what == "start") return state.StartHeld(job, now);
        return state.Update(job, {.priority = priority}, now);
      },
      [this, job, what](const absl::Status& status) {
        if (!status.ok()) return;
        if (what != "priority" || job.empty()) Say(absl::StrCat("user: ", what, " ", job));
        if (what == "cancel") cancelled_.try_emplace(job, now_);
        if (what == "retry") crashed_on_.erase(job);  // what the same batch said before
      });
}

// --- Faults.

void Simulation::FaultLater() {
  At(random_.Between(absl::Seconds(1), absl::Seconds(25)), [this] {
    if (calm_) return;
    Agent& agent = agents_[absl::StrCat("n", random_.Below(kNodes))];
    const int fault = random_.Below(10);
    if (fault < 3) {
      if (agent.link != 0) Break(agent);
    } else if (fault < 5) {
      CrashAgent(agent);
    } else if (fault < 6) {
      CrashServer("at any moment");
    } else if (fault < 7 && state_) {
      const absl::Duration jump = random_.Between(absl::Minutes(1), absl::Minutes(10)) * (random_.Chance(0.5) ? 1 : -1);
      Say(absl::StrCat("the server's clock is set by ", absl::FormatDuration(jump)));
      clock_ += jump;
      state_->ClockJumped(jump);
    } else if (fault < 8) {
      disk_full_ = true;
      ++counts_.full_disks;
      Say("disk full");
      At(random_.Between(absl::Seconds(1), absl::Seconds(20)), [this] { disk_full_ = false; });
    } else if (fault < 9 && random_.Chance(0.3)) {
      if (backup_ && random_.Chance(0.5)) {
        LoseTheRecord();
      } else {
        BackUp();
      }
    } else if (fault < 9) {
      // The agent lives and trains, and nobody hears of it, perhaps for longer than its lease.
      agent.partitioned_until = now_ + random_.Between(absl::Seconds(10), absl::Seconds(90));
      Say(absl::StrCat("agent ", agent.node, " is cut off"));
      Break(agent);
    }
    FaultLater();
  });
}

void Simulation::BackUp() {
  if (!state_) return;
  const std::string path = folder_.path() + "/backup";
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  if (const absl::Status copied = store_->CopyTo(path); !copied.ok()) return Violate("no backup: " + copied.ToString());
  Say("backup");
  backup_ = Backup{durable_, checkpoints_, cancelled_, failed_by_user_, crashed_on_, {}};
  for (const auto& request : requests_) {
    if (request->acknowledged) backup_->acknowledged.insert(request->id);
  }
}

// What users heard since the backup has not happened: they find out, and ask again.
void Simulation::LoseTheRecord() {
  if (!state_) return;
  CrashServer("and its record is lost");
  ++counts_.restorations;
  const std::string record = folder_.path() + "/luthier.db";
  std::error_code ignored;
  for (const char* end : {"", "-wal", "-shm"}) std::filesystem::remove(record + end, ignored);
  std::filesystem::copy_file(folder_.path() + "/backup", record);
  restored_ = true;
  durable_ = backup_->durable;
  checkpoints_ = backup_->checkpoints;
  cancelled_ = backup_->cancelled;
  failed_by_user_ = backup_->failed_by_user;
  crashed_on_ = backup_->crashed_on;
  for (const auto& request : requests_) {
    if (!request->acknowledged || backup_->acknowledged.count(request->id) > 0) continue;
    request->acknowledged.reset();
    At(random_.Between(absl::Seconds(1), absl::Seconds(30)), [this, request] { Submit(request); });
  }
}

// As `luthierd restore` does it, before the server serves.
void Simulation::BeginEpoch() {
  const auto begin = [epoch = ++epoch_](State& state, absl::Time now) {
    state.BeginEpoch(epoch, now);
    return absl::OkStatus();
  };
  const BatchOutcome outcome =
      RunBatch(*state_, {begin}, ServerNow(), [this](const Writes& writes) { return store_->Commit(writes); });
  if (!outcome.written.ok()) return Violate("the epoch cannot begin: " + outcome.written.ToString());
  RememberCommitted(outcome.writes);
}

}  // namespace luthier
