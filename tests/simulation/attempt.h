// An attempt on a node, on virtual time: its course (worker/agent/core/attempt_course) says what it does next, its
// outbox what is to be sent; its trainer, its uploads and its journal's disk are played.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "tests/simulation/simulation.h"
#include "worker/agent/core/attempt_course.h"
#include "worker/agent/core/outbox.h"

namespace luthier {

class Simulation::Attempt final : public Roster::Entry {
 public:
  // As ordered.
  Attempt(Simulation& simulation, Agent& agent, AttemptPath name, const v1::StartAttempt& order);
  // One that an earlier life of the agent left in its journal.
  Attempt(Simulation& simulation, Agent& agent, AttemptPath name);

  void GoOn(const std::string& credential) override;
  void Stop(absl::Duration grace, bool job_goes_on) override;
  void Checkpoint() override;
  void Abandon() override;
  void Suspend(absl::Duration grace);
  // The next report to send in this session.
  std::optional<v1::AttemptReport> NextReport();
  void Rewind(int64_t acknowledged) override;
  void Acknowledge(int64_t sequence) override;
  bool uses_devices() const override { return course_.uses_devices(); }
  bool settled() const override;
  const AttemptPath& name() const override { return name_; }
  const v1::StartAttempt& order() const override { return order_; }

  // Its trainer is there, and nobody has killed it.
  bool trains() const { return trainer_ == Trainer::kAlive; }
  // A process of it is there.
  bool has_process() const { return trainer_ != Trainer::kNone; }
  bool is_done() const;
  int64_t backlog() const { return outbox_.backlog(); }
  // The server has to say so if it is to end: it has not said so itself, nor that its result is stored.
  bool goes_on() const;

 private:
  enum class Trainer { kNone, kAlive, kDying };

  // Unless its agent has crashed by then.
  void Later(absl::Duration delay, std::function<void()> action);
  void Advance();
  void Prepare();
  void StartTrainer();
  void Meet(absl::Time until);
  void Follow();
  void Train(int64_t step);
  void Say(const std::string& event);
  void Exit(int code);
  void LosePeer();
  bool HasPeer() const;
  void Obey();
  void EndTrainer(const TrainerEnd& end);
  absl::Status Upload() const;
  void Publish();
  bool StoreNewest();
  void StoreLastCheckpoint(absl::Time until);
  void ReportEnd();
  void Report(v1::AttemptReport report);
  bool leads() const { return course_.leads(); }
  const Fate& fate() const { return simulation_.fates_.at(name_.job); }

  Simulation& simulation_;
  Agent& agent_;
  const AttemptPath name_;
  const v1::StartAttempt order_;
  Journal& journal_;
  Outbox outbox_;
  AttemptCourse course_;
  Trainer trainer_ = Trainer::kNone;
  int64_t step_ = 0;                           // that the trainer has done
  int64_t newest_step_ = 0, stored_step_ = 0;  // of its checkpoints, and of those that are in the server's store
  bool sent_all_ = false;                      // the last upload, since the one before it lacked something
  std::shared_ptr<void> alive_ = std::make_shared<char>();
};

}  // namespace luthier
