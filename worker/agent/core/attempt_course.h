// The course of one attempt on a node: what it does next, by what the server wishes, what its trainer says and how
// things end. Pure: time is an argument, and what it decides is for its owner to do, worker/agent/attempt with threads,
// processes and files, tests/simulation on virtual time.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "luthier/v1/worker.pb.h"

namespace luthier {

// An attempt whose ranks ended only since those of another node did gives the server so long to hear from the agent
// there, which knows why, and to have this one stop.
inline constexpr absl::Duration kPeerPatience = absl::Seconds(10);

// What is wanted of an attempt. The stronger one counts.
enum class Wish {
  kNone,
  kStop,     // a checkpoint, and its end
  kSuspend,  // the same, since the agent ends: what is left to publish is for the next agent
  kAbandon,  // the server has forgotten it: end without a word
};

// What a trainer says of itself (docs/trainer-protocol.md).
struct TrainerWord {
  std::string event;
  std::string message, cause, artifact;  // of a last word; `artifact`: its kind
};
TrainerWord WordOf(const google::protobuf::Struct& event);

// How a trainer ended.
struct TrainerEnd {
  int code = -1;  // -1: by a signal, or it could not be started
  int signal = 0;
  bool killed = false;         // by its agent
  bool out_of_memory = false;  // the kernel killed somebody for memory meanwhile
  std::string stalled;         // its agent killed it for its silence: what to say of that
  std::string failure;         // it could not be started or ended: why
  std::string log_tail;        // what it wrote last, if it said nothing of a reason
};

class AttemptCourse {
 public:
  enum class Stage {
    kLeft,             // by an earlier agent: until the server wants it to go on
    kPrepare,          // the run folder is its own; inputs, checkpoint and spec, if it was ordered, are here
    kTrain,            // its trainer runs
    kAwaitServer,      // for its word, kPeerPatience at most
    kPublish,          // tries to store the artifact
    kStoreCheckpoint,  // for StorePatience()
    kReportEnd,        // `ended()`, if it has an outcome
    kOver,
  };
  // What to do with a trainer.
  enum class Command { kNone, kCheckpoint, kStop, kKill };
  // After a try to store the artifact.
  enum class Publication { kStored, kAgain, kAgainWithAll, kOver };

  // As ordered.
  explicit AttemptCourse(const v1::StartAttempt& order)
      : leads_(order.gang().node_rank() == 0), gang_(order.has_gang()) {}
  // One that an earlier agent left; its trainer is dead. Recall() every report that is on disk, in order.
  AttemptCourse() : stage_(Stage::kLeft), left_(true) {}
  void Recall(const v1::AttemptReport& report);
  // The server still wants one that was left. False if it has nothing to do: it goes on already, or has ended.
  bool GoOn();

  Stage stage() const { return stage_; }
  // It was left by an earlier agent.
  bool left() const { return left_; }
  // Of one node, or on the leading one of several. Also true of what an earlier agent left, whose order is not known.
  bool leads() const { return leads_; }
  // Its trainer runs, or may still be started.
  bool uses_devices() const;

  // --- What is wanted, at any time.
  void MakeWish(Wish wish, absl::Time end);
  // The server wants it to end within `grace`. `job_goes_on`: later, from a checkpoint that is stored before.
  void Stop(absl::Duration grace, bool job_goes_on, absl::Time now);
  // A checkpoint after the running step, if its trainer runs.
  void AskForCheckpoint() { checkpoint_asked_ = true; }
  Wish wish() const { return wish_; }

  // --- While its trainer runs.
  // True: the word is to be reported. A part that does not lead says nothing, and nothing follows a last word.
  bool Hear(const TrainerWord& word);
  bool HasLastWord() const { return last_word_.has_value(); }
  // Asks once, and kills when the time is over. A trainer that has said its last word is expected to end by itself.
  Command CommandFor(absl::Time now);
  // From when on CommandFor() says kKill.
  absl::Time KillTime() const { return kill_at_.value_or(absl::InfiniteFuture()); }
  // Nothing is wanted of it, and it has more to say: its silence means something.
  bool IsUndisturbed() const { return wish_ == Wish::kNone && !last_word_; }

  // --- How each stage ended; sets the next.
  void OnPrepared(const absl::Status& status);
  void OnTrained(const TrainerEnd& end);
  void OnAwaited();
  // `sent_all`: nothing was left out of the upload as stored already.
  Publication OnPublished(const absl::Status& status, bool sent_all);
  // Its files cannot be read.
  void OnUnreadableArtifact(const absl::Status& status) { End(AfterError(status)); }
  void OnCheckpointStored();
  void OnEndReported();

  // In kStoreCheckpoint. Whether its newest checkpoint is to be stored though it was too large to be on the way.
  bool OffersLastCheckpoint() const { return ended_.outcome() == v1::AttemptEnded::STOPPED; }
  // Devices are given back only after the checkpoint of a stopped attempt is stored. After a crash the job mostly goes
  // on where its checkpoint lies.
  absl::Duration StorePatience(absl::Time now) const;
  // The last word's artifact.
  const std::string& artifact() const { return last_word_->artifact; }
  // In kReportEnd. No outcome: nothing is to be reported, since it is forgotten, or left for the next agent.
  const v1::AttemptEnded& ended() const { return ended_; }
  // Its last report is made, by this agent or an earlier one.
  bool has_reported_end() const { return reported_end_; }

 private:
  void End(v1::AttemptEnded ended);
  v1::AttemptEnded EndOf(const TrainerEnd& end) const;
  v1::AttemptEnded FailureOfTrainer() const;
  v1::AttemptEnded AfterError(const absl::Status& status) const;
  void GoOnAfterLastWord();

  Stage stage_ = Stage::kPrepare;
  bool left_ = false;
  bool leads_ = true, gang_ = false;
  Wish wish_ = Wish::kNone;
  absl::Time wish_end_ = absl::InfiniteFuture();  // when the grace is over
  bool checkpoint_asked_ = false;
  std::optional<absl::Time> kill_at_;  // once it has to end
  std::optional<TrainerWord> last_word_;
  bool stored_ = false;  // the artifact is, and reported
  int refused_uploads_ = 0;
  v1::AttemptEnded ended_;
  bool reported_end_ = false;
};

}  // namespace luthier
