#include <signal.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/trainer_words.h"
#include "tests/simulation/attempt.h"

namespace luthier {
namespace {

constexpr int64_t kSteps = 3;
// The ranks of a part wait for those of the other one so long.
constexpr absl::Duration kMeetingPatience = absl::Minutes(5);
// Between tries to reach a server that is away.
constexpr absl::Duration kUploadPause = absl::Seconds(2);

bool Overlap(const v1::StartAttempt& a, const v1::StartAttempt& b) {
  return std::any_of(a.gpus().begin(), a.gpus().end(),
                     [&](int gpu) { return std::count(b.gpus().begin(), b.gpus().end(), gpu) > 0; });
}

}  // namespace

Simulation::Attempt::Attempt(Simulation& simulation, Agent& agent, AttemptPath name, const v1::StartAttempt& order)
    : simulation_(simulation),
      agent_(agent),
      name_(std::move(name)),
      order_(order),
      journal_(agent.journals[name_.text()]),
      course_(order) {
  for (const auto& [other, entry] : agent.roster->entries()) {
    if (!static_cast<Attempt&>(*entry).has_process() || !Overlap(entry->order(), order)) continue;
    simulation_.Violate(
        absl::StrCat("P6: ", name_.text(), " was given devices of ", agent.node, " that ", other, " uses"));
  }
  simulation_.Say(absl::StrCat(agent.node, " gets ", name_.text(), leads() ? "" : " and follows"));
  if (leads()) {
    ++simulation_.counts_.attempts;
    if (order.has_gang()) ++simulation_.counts_.gangs;
    if (order.has_checkpoint()) ++simulation_.counts_.resumptions;
  }
  Advance();
}

Simulation::Attempt::Attempt(Simulation& simulation, Agent& agent, AttemptPath name)
    : simulation_(simulation),
      agent_(agent),
      name_(std::move(name)),
      journal_(agent.journals.at(name_.text())),
      outbox_(journal_.base, journal_.last()) {
  for (const v1::AttemptReport& report : journal_.reports) {
    course_.Recall(report);
    if (report.has_checkpoint_stored()) stored_step_ = report.checkpoint_stored().step();
    if (report.has_trainer_event() && TellsOfCheckpoint(WordOf(report.trainer_event()).event))
      newest_step_ = static_cast<int64_t>(report.trainer_event().fields().at("step").number_value());
  }
}

void Simulation::Attempt::Later(absl::Duration delay, std::function<void()> action) {
  simulation_.At(delay, [alive = std::weak_ptr<void>(alive_), action = std::move(action)] {
    if (!alive.expired()) action();
  });
}

// --- Its steps.

void Simulation::Attempt::Advance() {
  Random& random = simulation_.random_;
  switch (course_.stage()) {
    case AttemptCourse::Stage::kPrepare:
      return Later(random.Between(absl::Milliseconds(100), absl::Seconds(2)), [this] { Prepare(); });
    case AttemptCourse::Stage::kTrain: return StartTrainer();
    case AttemptCourse::Stage::kAwaitServer:
      return Later(kPeerPatience, [this] {
        if (course_.stage() != AttemptCourse::Stage::kAwaitServer) return;
        course_.OnAwaited();
        Advance();
      });
    case AttemptCourse::Stage::kPublish:
      return Later(random.Between(absl::Milliseconds(10), absl::Seconds(5)), [this] { Publish(); });
    case AttemptCourse::Stage::kStoreCheckpoint:
      return StoreLastCheckpoint(simulation_.now_ + course_.StorePatience(simulation_.now_));
    case AttemptCourse::Stage::kReportEnd: return ReportEnd();
    case AttemptCourse::Stage::kLeft:
    case AttemptCourse::Stage::kOver: return;
  }
}

// An earlier attempt of the job may still be dying.
void Simulation::Attempt::Prepare() {
  const bool busy = std::any_of(agent_.roster->entries().begin(), agent_.roster->entries().end(), [&](const auto& e) {
    const auto& other = static_cast<const Attempt&>(*e.second);
    return &other != this && other.name_.job == name_.job && !other.is_done();
  });
  const bool wanted = course_.wish() == Wish::kNone;
  if (busy && wanted) return Later(absl::Seconds(1), [this] { Prepare(); });
  // An input that cannot be had; of one that was left, nothing but the folder is needed.
  const bool fails = !course_.left() && !simulation_.calm_ && simulation_.random_.Chance(0.01);
  course_.OnPrepared(!wanted ? absl::CancelledError() : fails ? absl::InternalError("") : absl::OkStatus());
  Advance();
}

// The upload succeeds only while the attempt is the current one, as the store refuses others.
absl::Status Simulation::Attempt::Upload() const {
  if (course_.wish() == Wish::kAbandon) return absl::CancelledError();
  if (!simulation_.Reaches(agent_) || simulation_.disk_full_) return absl::UnavailableError("");
  if (simulation_.state_->IsCurrent({name_.job, name_.number})) return absl::OkStatus();
  return absl::FailedPreconditionError("stale");
}

void Simulation::Attempt::Publish() {
  const absl::Status uploaded = course_.wish() == Wish::kNone ? Upload() : absl::CancelledError();
  const bool sent_all = sent_all_ || simulation_.random_.Chance(0.5);
  const AttemptCourse::Publication publication = course_.OnPublished(uploaded, sent_all);
  sent_all_ = publication == AttemptCourse::Publication::kAgainWithAll;
  if (sent_all_ || publication == AttemptCourse::Publication::kAgain) return Later(kUploadPause, [this] { Publish(); });
  if (publication == AttemptCourse::Publication::kStored) {
    v1::AttemptReport report;
    report.mutable_artifact_stored()->set_kind(v1::ModelVersion::ADAPTER);
    Report(std::move(report));
  }
  Advance();
}

bool Simulation::Attempt::StoreNewest() {
  if (newest_step_ <= stored_step_) return true;
  const absl::Status uploaded = Upload();
  if (!uploaded.ok()) return !absl::IsUnavailable(uploaded);
  stored_step_ = newest_step_;
  v1::AttemptReport report;
  report.mutable_checkpoint_stored()->set_step(stored_step_);
  Report(std::move(report));
  return true;
}

void Simulation::Attempt::StoreLastCheckpoint(absl::Time until) {
  const bool over = course_.wish() == Wish::kAbandon || simulation_.now_ >= until;
  if (!over && !StoreNewest()) return Later(kUploadPause, [this, until] { StoreLastCheckpoint(until); });
  course_.OnCheckpointStored();
  Advance();
}

void Simulation::Attempt::ReportEnd() {
  const auto finished = [](const v1::AttemptReport& report) {
    return report.has_trainer_event() && WordOf(report.trainer_event()).event == "finished";
  };
  if (course_.ended().outcome() == v1::AttemptEnded::LOST &&
      std::any_of(journal_.reports.begin(), journal_.reports.end(), finished))
    simulation_.Violate(absl::StrCat("P3: what ", name_.text(), " trained is thrown away"));
  if (course_.ended().outcome() != v1::AttemptEnded::OUTCOME_UNSPECIFIED) {
    v1::AttemptReport report;
    *report.mutable_ended() = course_.ended();
    Report(std::move(report));
  }
  course_.OnEndReported();
  simulation_.Heartbeat(agent_);
  Agent& agent = agent_;
  Later(absl::Milliseconds(20), [this, &agent] { simulation_.Tidy(agent); });
}

bool Simulation::Attempt::is_done() const {
  return course_.stage() == AttemptCourse::Stage::kLeft || course_.stage() == AttemptCourse::Stage::kOver;
}

bool Simulation::Attempt::goes_on() const {
  const bool stored = std::any_of(journal_.reports.begin(), journal_.reports.end(),
                                  [](const v1::AttemptReport& report) { return report.has_artifact_stored(); });
  return !stored && course_.wish() != Wish::kAbandon && !course_.has_reported_end();
}

bool Simulation::Attempt::settled() const {
  return is_done() && (course_.wish() == Wish::kAbandon || (course_.has_reported_end() && backlog() == 0));
}

// --- Its trainer.

// Ranks on one node do not wait for another.
void Simulation::Attempt::StartTrainer() {
  trainer_ = Trainer::kAlive;
  step_ = order_.checkpoint().step();
  if (order_.has_gang()) return Meet(simulation_.now_ + kMeetingPatience);
  Train(step_);
}

void Simulation::Attempt::Meet(absl::Time until) {
  if (!trains()) return;
  if (HasPeer()) return leads() ? Train(step_) : Follow();
  if (simulation_.now_ >= until) return LosePeer();
  Later(absl::Seconds(1), [this, until] { Meet(until); });
}

// A part that does not lead: it ends with the other one.
void Simulation::Attempt::Follow() {
  if (!trains()) return;
  if (simulation_.trained_.count(name_.text()) > 0) return EndTrainer({.code = 0});
  if (!HasPeer()) return LosePeer();
  if (simulation_.random_.Chance(fate().crash * 0.02)) return EndTrainer({.signal = SIGSEGV});
  Later(simulation_.random_.Between(absl::Seconds(1), absl::Seconds(3)), [this] { Follow(); });
}

void Simulation::Attempt::Train(int64_t step) {
  if (!trains()) return;
  if (order_.has_gang() && !HasPeer()) return LosePeer();
  const bool begins = step == order_.checkpoint().step();
  step_ = step;
  if (begins) Say("started");
  if (step > 0 && fate().user_error) {
    Say("failed");
    return Exit(1);
  }
  if (step > 0 && simulation_.random_.Chance(fate().crash)) return EndTrainer({.signal = SIGSEGV});
  if (step == kSteps) {
    simulation_.trained_.insert(name_.text());
    Say("finished");
    return Exit(0);
  }
  if (!begins) Say(simulation_.random_.Chance(0.7) ? "checkpoint" : "progress");
  Later(fate().training / kSteps, [this, step] { Train(step + 1); });
}

void Simulation::Attempt::Say(const std::string& event) {
  v1::AttemptReport report;
  auto& fields = *report.mutable_trainer_event()->mutable_fields();
  fields["event"].set_string_value(event);
  fields["step"].set_number_value(static_cast<double>(step_));
  if (event == "progress") fields["tokens_per_second"].set_number_value(100 * (1 + simulation_.random_.Below(20)));
  if (TellsOfCheckpoint(event)) newest_step_ = step_;
  if (course_.Hear(WordOf(report.trainer_event()))) Report(std::move(report));
  if (event != "checkpoint") return;
  Later(simulation_.random_.Between(absl::Milliseconds(10), absl::Seconds(5)), [this] {
    if (trains()) StoreNewest();
  });
}

// After its last word: at once, or when it has freed its memory, or never by itself.
void Simulation::Attempt::Exit(int code) {
  Obey();
  const absl::Duration slowest = simulation_.random_.Chance(0.1) ? absl::Seconds(15) : absl::Milliseconds(100);
  Later(simulation_.random_.Between(absl::ZeroDuration(), slowest), [this, code] {
    if (trains()) EndTrainer({.code = code});
  });
}

void Simulation::Attempt::LosePeer() {
  ++simulation_.counts_.lost_peers;
  EndTrainer({.code = kLostRankExitCode});
}

bool Simulation::Attempt::HasPeer() const {
  return std::any_of(simulation_.agents_.begin(), simulation_.agents_.end(), [&](const auto& other) {
    const Agent& agent = other.second;
    if (&agent == &agent_ || agent.roster == nullptr) return false;
    const auto entry = agent.roster->entries().find(name_.text());
    return entry != agent.roster->entries().end() && static_cast<const Attempt&>(*entry->second).trains();
  });
}

void Simulation::Attempt::EndTrainer(const TrainerEnd& end) {
  trainer_ = Trainer::kNone;
  course_.OnTrained(end);
  Advance();
}

// What the attempt does about a wish. A trainer that is asked to stop may not listen.
void Simulation::Attempt::Obey() {
  Random& random = simulation_.random_;
  if (course_.stage() == AttemptCourse::Stage::kAwaitServer && course_.wish() != Wish::kNone) {
    course_.OnAwaited();
    return Advance();
  }
  if (!trains()) return;
  const AttemptCourse::Command order = course_.CommandFor(simulation_.now_);
  if (order == AttemptCourse::Command::kCheckpoint) Say("checkpoint");
  if (order == AttemptCourse::Command::kStop && random.Chance(0.8)) {
    Later(random.Between(absl::Milliseconds(100), absl::Seconds(25)), [this] {
      if (!trains()) return;
      Say("stopped");
      Exit(0);
    });
  }
  if (order == AttemptCourse::Command::kKill) {
    trainer_ = Trainer::kDying;
    return Later(random.Between(absl::Milliseconds(10), absl::Milliseconds(500)),
                 [this] { EndTrainer({.signal = SIGKILL, .killed = true}); });
  }
  if (course_.KillTime() != absl::InfiniteFuture()) Later(course_.KillTime() - simulation_.now_, [this] { Obey(); });
}

// --- What the server wants.

void Simulation::Attempt::GoOn(const std::string&) {
  if (course_.GoOn()) Advance();
}

void Simulation::Attempt::Stop(absl::Duration grace, bool job_goes_on) {
  course_.Stop(grace, job_goes_on, simulation_.now_);
  Obey();
}

void Simulation::Attempt::Suspend(absl::Duration grace) {
  course_.MakeWish(Wish::kSuspend, simulation_.now_ + grace);
  Obey();
}

void Simulation::Attempt::Abandon() {
  course_.MakeWish(Wish::kAbandon, simulation_.now_);
  Obey();
}

void Simulation::Attempt::Checkpoint() {
  course_.AskForCheckpoint();
  Obey();
}

// --- Its reports.

void Simulation::Attempt::Report(v1::AttemptReport report) {
  report.set_attempt(name_.text());
  report.set_sequence(outbox_.Add());
  journal_.reports.push_back(std::move(report));
  simulation_.SendReports(agent_);
  const absl::Duration slowest = simulation_.random_.Chance(0.1) ? absl::Seconds(2) : absl::Milliseconds(20);
  Later(simulation_.random_.Between(absl::Milliseconds(1), slowest), [this, last = outbox_.last()] {
    outbox_.Keep(last);
    journal_.durable = outbox_.durable();
    simulation_.SendReports(agent_);
  });
}

std::optional<v1::AttemptReport> Simulation::Attempt::NextReport() {
  if (course_.wish() == Wish::kAbandon) return std::nullopt;
  const std::optional<int64_t> sequence = outbox_.Next();
  if (!sequence) return std::nullopt;
  return journal_.reports[static_cast<size_t>(*sequence - journal_.base - 1)];
}

void Simulation::Attempt::Rewind(int64_t acknowledged) {
  if (acknowledged > outbox_.last())
    simulation_.Violate(absl::StrCat(name_.text(), " has ", outbox_.last(), " reports, and the server ", acknowledged));
  outbox_.Rewind(acknowledged);
}

// Now and then what is acknowledged goes from the disk, as long as the trainer has not said its last word.
void Simulation::Attempt::Acknowledge(int64_t sequence) {
  outbox_.Acknowledge(sequence);
  if (course_.HasLastWord() || !simulation_.random_.Chance(0.1)) return;
  const int64_t acknowledged = outbox_.acknowledged();
  journal_.reports.erase(journal_.reports.begin(), journal_.reports.begin() + (acknowledged - journal_.base));
  journal_.base = acknowledged;
}

}  // namespace luthier
