#include "worker/agent/core/attempt_course.h"

#include <signal.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/trainer_words.h"

namespace luthier {
namespace {

// From a trainer's last word to its end: it only frees its memory.
constexpr absl::Duration kExitPatience = absl::Seconds(10);
// A file of the artifact that changes under the upload is a defect of the disk, and not worth more tries.
constexpr int kMaxRefusedUploads = 3;
// Beyond this, what is lost by going on from an older checkpoint is worth less than the devices that wait.
constexpr absl::Duration kStorePatience = absl::Minutes(5);
constexpr absl::Duration kStorePatienceAfterLoss = absl::Seconds(10);
// The cause of a loss with kLostRankExitCode.
constexpr char kPeer[] = "PEER";
// Said by a trainer of its node's disk; of a failure, that the server cannot give an input.
constexpr char kStorage[] = "STORAGE";

v1::AttemptEnded Ended(v1::AttemptEnded::Outcome outcome, std::string message, std::string cause = "") {
  v1::AttemptEnded ended;
  ended.set_outcome(outcome);
  ended.set_message(std::move(message));
  ended.set_cause(std::move(cause));
  return ended;
}

// It said nothing of a reason, so what it wrote last may.
v1::AttemptEnded Crashed(std::string message, const std::string& cause, const std::string& log_tail) {
  if (!log_tail.empty()) absl::StrAppend(&message, "; it said last:\n", log_tail);
  return Ended(v1::AttemptEnded::LOST, std::move(message), cause);
}

std::string TextOf(const google::protobuf::Struct& object, const std::string& field) {
  const auto found = object.fields().find(field);
  return found == object.fields().end() ? "" : found->second.string_value();
}

}  // namespace

TrainerWord WordOf(const google::protobuf::Struct& event) {
  TrainerWord word{TextOf(event, "event"), TextOf(event, "message"), TextOf(event, "cause"), ""};
  if (const auto artifact = event.fields().find("artifact"); artifact != event.fields().end())
    word.artifact = TextOf(artifact->second.struct_value(), "kind");
  return word;
}

void AttemptCourse::Recall(const v1::AttemptReport& report) {
  if (report.has_trainer_event()) Hear(WordOf(report.trainer_event()));
  stored_ |= report.has_artifact_stored();
  reported_end_ |= report.has_ended();
}

bool AttemptCourse::GoOn() {
  if (stage_ != Stage::kLeft || reported_end_) return false;
  stage_ = Stage::kPrepare;
  return true;
}

bool AttemptCourse::uses_devices() const { return stage_ == Stage::kTrain || (stage_ == Stage::kPrepare && !left_); }

void AttemptCourse::MakeWish(Wish wish, absl::Time end) {
  if (wish < wish_) return;
  // A job that is cancelled while it is being paused has the patience of the cancellation.
  wish_end_ = wish == wish_ ? std::min(wish_end_, end) : end;
  wish_ = wish;
}

void AttemptCourse::Stop(absl::Duration grace, bool job_goes_on, absl::Time now) {
  // Nothing of it is of use any more, and ranks that wait for those of other nodes hear nothing.
  const bool at_once = gang_ && !job_goes_on;
  MakeWish(Wish::kStop, at_once ? now : now + grace);
}

bool AttemptCourse::Hear(const TrainerWord& word) {
  if (last_word_) return false;
  // A part that does not lead speaks of its own ranks only, and `ended` passes that on.
  if (leads_ ? IsLastWord(word.event) : word.event == "failed") last_word_ = word;
  return leads_ && word.event != "busy";  // that is said for the stall watch alone
}

AttemptCourse::Command AttemptCourse::CommandFor(absl::Time now) {
  if (IsUndisturbed()) return std::exchange(checkpoint_asked_, false) ? Command::kCheckpoint : Command::kNone;
  if (wish_ == Wish::kAbandon) return Command::kKill;
  const bool first = !kill_at_;
  if (first) kill_at_ = wish_ == Wish::kNone ? now + kExitPatience : absl::InfiniteFuture();
  if (wish_ != Wish::kNone) kill_at_ = std::min(*kill_at_, wish_end_);
  if (now >= *kill_at_) return Command::kKill;
  return first && !last_word_ ? Command::kStop : Command::kNone;
}

void AttemptCourse::OnPrepared(const absl::Status& status) {
  if (!status.ok()) return End(AfterError(status));
  if (left_) return GoOnAfterLastWord();
  stage_ = Stage::kTrain;
}

void AttemptCourse::GoOnAfterLastWord() {
  const std::string said = last_word_ ? last_word_->event : "";
  if (said == "finished" && stored_) return End(Ended(v1::AttemptEnded::FINISHED, ""));
  if (said == "failed") return End(FailureOfTrainer());
  if (said == "finished") {
    stage_ = Stage::kPublish;
  } else if (said == "stopped") {
    ended_ = Ended(v1::AttemptEnded::STOPPED, "stopped");
    stage_ = Stage::kStoreCheckpoint;
  } else {
    End(Ended(v1::AttemptEnded::LOST, "the agent of the node died, and the trainer with it"));
  }
}

void AttemptCourse::OnTrained(const TrainerEnd& end) {
  ended_ = EndOf(end);
  if (ended_.outcome() == v1::AttemptEnded::LOST && ended_.cause() == kPeer) {
    stage_ = Stage::kAwaitServer;
  } else if (ended_.outcome() == v1::AttemptEnded::FINISHED) {
    stage_ = Stage::kPublish;
  } else if (ended_.outcome() == v1::AttemptEnded::STOPPED || ended_.outcome() == v1::AttemptEnded::LOST) {
    stage_ = Stage::kStoreCheckpoint;  // before the end is reported: the job may be on another node a moment later
  } else {
    stage_ = Stage::kReportEnd;
  }
}

void AttemptCourse::OnAwaited() {
  if (wish_ == Wish::kAbandon) return End({});
  if (wish_ != Wish::kNone) ended_ = AfterError(absl::CancelledError());
  stage_ = Stage::kStoreCheckpoint;
}

AttemptCourse::Publication AttemptCourse::OnPublished(const absl::Status& status, bool sent_all) {
  if (status.ok()) {
    stored_ = true;
    End(Ended(v1::AttemptEnded::FINISHED, ""));
    return Publication::kStored;
  }
  if (wish_ == Wish::kNone && absl::IsFailedPrecondition(status)) {
    // The shared folder may not be the server's; else a newer attempt took its place.
    if (!sent_all) return Publication::kAgainWithAll;
    MakeWish(Wish::kAbandon, absl::InfinitePast());
  }
  // The server is away or full: that passes. Anything else is refused for good.
  const bool passes = absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
  if (wish_ == Wish::kNone && (passes || ++refused_uploads_ < kMaxRefusedUploads)) return Publication::kAgain;
  End(AfterError(status));
  return Publication::kOver;
}

absl::Duration AttemptCourse::StorePatience(absl::Time now) const {
  if (wish_ == Wish::kSuspend) return std::max(absl::ZeroDuration(), wish_end_ - now);
  return ended_.outcome() == v1::AttemptEnded::STOPPED ? kStorePatience : kStorePatienceAfterLoss;
}

void AttemptCourse::OnCheckpointStored() { End(ended_); }

void AttemptCourse::OnEndReported() {
  reported_end_ = ended_.outcome() != v1::AttemptEnded::OUTCOME_UNSPECIFIED;
  stage_ = Stage::kOver;
}

void AttemptCourse::End(v1::AttemptEnded ended) {
  ended_ = wish_ == Wish::kAbandon ? v1::AttemptEnded() : std::move(ended);
  stage_ = Stage::kReportEnd;
}

v1::AttemptEnded AttemptCourse::EndOf(const TrainerEnd& end) const {
  const std::string said = last_word_ ? last_word_->event : "";
  if (!end.failure.empty()) return Ended(v1::AttemptEnded::LOST, end.failure);
  if (!end.stalled.empty() && IsUndisturbed()) return Crashed(end.stalled, "STALLED", end.log_tail);
  if (wish_ == Wish::kAbandon) return {};
  if (said == "finished" && wish_ == Wish::kSuspend) return {};
  if (said == "finished" && wish_ == Wish::kNone) return Ended(v1::AttemptEnded::FINISHED, "");
  if (said == "failed") return FailureOfTrainer();
  if (said == "stopped")
    return Ended(v1::AttemptEnded::STOPPED, wish_ == Wish::kSuspend ? "the agent was stopped" : "stopped");
  if (!leads_ && end.code == 0) return Ended(v1::AttemptEnded::STOPPED, "the leading node ended the run");
  if (wish_ != Wish::kNone) return Ended(v1::AttemptEnded::STOPPED, end.killed ? "its trainer was killed" : "stopped");
  if (gang_ && end.code == kLostRankExitCode)
    return Crashed("ranks of another node are gone or did not come", kPeer, end.log_tail);
  if (end.signal == SIGKILL && end.out_of_memory) {
    return Ended(v1::AttemptEnded::FAILED,
                 "the node's memory ran out and its kernel killed the trainer; lower "
                 "training.micro_batch_tokens or training.max_length, or use a node with more memory",
                 "OOM");
  }
  return Crashed(end.signal != 0
                     ? absl::StrCat("the trainer was ended by signal ", end.signal, " (", strsignal(end.signal), ")")
                     : absl::StrCat("the trainer ended with code ", end.code, " and no last word"),
                 "CRASHED", end.log_tail);
}

// A disk of the node that is full or broken is no fault of the job's: it is tried again, elsewhere if it has to be.
v1::AttemptEnded AttemptCourse::FailureOfTrainer() const {
  return Ended(last_word_->cause == kStorage ? v1::AttemptEnded::LOST : v1::AttemptEnded::FAILED, last_word_->message,
               last_word_->cause);
}

// How it ends after something on the way to or from the trainer failed.
v1::AttemptEnded AttemptCourse::AfterError(const absl::Status& status) const {
  const bool finished = last_word_ && last_word_->event == "finished";
  if (wish_ == Wish::kAbandon || (wish_ == Wish::kSuspend && finished)) return {};
  if (wish_ != Wish::kNone) return Ended(v1::AttemptEnded::STOPPED, "stopped");
  if (absl::IsFailedPrecondition(status)) {  // the server cannot give an input: no node can do better
    return Ended(v1::AttemptEnded::FAILED, std::string(status.message()), kStorage);
  }
  return Ended(v1::AttemptEnded::LOST, std::string(status.message()));
}

}  // namespace luthier
