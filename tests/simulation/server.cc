// The server: its batches, what it sends, how it crashes and starts again.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulation.h"

namespace luthier {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(500);

}  // namespace

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
  AddBaseModel();
  Say(absl::StrCat("server starts, life ", server_life_));
  const int64_t life = server_life_;
  At(kTick, [this, life] {
    if (life == server_life_) ServerTick();
  });
}

// At every start, since the server may have crashed before it was written, and until it is.
void Simulation::AddBaseModel() {
  Post([](State& state, absl::Time) { return state.AddResource(ResourceKind::kBaseModel, {.id = "base"}); },
       [this, life = server_life_](const absl::Status& status) {
         if (status.ok() || absl::IsAlreadyExists(status)) return;
         At(absl::Seconds(1), [this, life] {
           if (life == server_life_) AddBaseModel();
         });
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
  // Once in a while for so long that whole jobs are done meanwhile.
  const bool absent = random_.Chance(0.03);
  if (absent) ++counts_.absences;
  const absl::Duration down = absent                ? random_.Between(absl::Minutes(30), absl::Minutes(90))
                              : random_.Chance(0.2) ? random_.Between(absl::Seconds(20), absl::Minutes(3))
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
    CheckGangs(outcome.writes, outcome.effects);
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
  switch (effect.kind) {
    case Effect::Kind::kStart:
      Order(link, [this, order = OrderOf(effect)](Agent& agent) {
        if (const absl::Status started = agent.roster->OnStart(order); !started.ok()) Violate(started.ToString());
      });
      break;
    case Effect::Kind::kStop: {
      v1::StopAttempt order;
      order.set_attempt(effect.attempt);
      order.mutable_grace()->set_seconds(effect.job_goes_on ? 30 : 20);
      order.set_job_goes_on(effect.job_goes_on);
      Order(link, [this, order](Agent& agent) { OnStop(agent, order); });
      break;
    }
    case Effect::Kind::kCheckpoint: {
      v1::CheckpointAttempt order;
      order.set_attempt(effect.attempt);
      Order(link, [order](Agent& agent) { agent.roster->OnCheckpoint(order); });
      break;
    }
    case Effect::Kind::kReconnect: ToAgent(link, [this](Agent& agent) { Break(agent); }); break;
  }
}

v1::StartAttempt Simulation::OrderOf(const Effect& effect) {
  v1::StartAttempt order;
  order.set_attempt(effect.attempt);
  for (const int device : effect.devices) order.add_gpus(device);
  if (effect.gang) order.mutable_gang()->set_node_rank(effect.gang->node_rank);
  const int64_t stored = StoredStep(effect.job);
  if (stored > 0 && order.gang().node_rank() == 0) order.mutable_checkpoint()->set_step(stored);
  return order;
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
