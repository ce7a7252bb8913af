// One attempt on this node, from the order to its last report. Its thread makes the inputs local, starts and listens to
// the trainer, stores the artifact; what it has to say goes through the journal.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/base/steady_now.h"
#include "lib/base/trainer_words.h"
#include "luthier/v1/worker.pb.h"
#include "nlohmann/json.hpp"
#include "worker/agent/agent_metrics.h"
#include "worker/agent/attempt_log.h"
#include "worker/agent/attempt_name.h"
#include "worker/agent/cancellation.h"
#include "worker/agent/checkpoint_upload.h"
#include "worker/agent/data_folder.h"
#include "worker/agent/input_cache.h"
#include "worker/agent/journal.h"
#include "worker/agent/memory_kills.h"
#include "worker/agent/server_files.h"
#include "worker/agent/stall_watch.h"
#include "worker/agent/trainer_process.h"

namespace luthier {

class Attempt {
 public:
  // What every attempt of the agent works with; outlives them.
  struct Node {
    const DataFolder& folder;
    InputCache& cache;
    ArtifactSink& artifacts;
    AgentMetrics& metrics;
    std::string trainer;       // path of luthier-trainer
    std::string shared_store;  // empty: none
    v1::Inventory inventory;   // as the agent found it at its start
    std::vector<std::string> memory_kill_counters = MemoryKills::Counters();
    // Bytes of a checkpoint of a full model that is stored on the server while the trainer goes on; smaller ones and
    // those of adapters always are.
    int64_t max_checkpoint_bytes = int64_t{1} << 30;
    int64_t checkpoint_bytes_per_second = int64_t{50} << 20;
    absl::Duration stall_after = absl::Minutes(15);  // of silence between steps a trainer is ended
    // An attempt whose ranks ended only since those of another node did gives the server so long to hear from the agent
    // there, which knows why, and to have this one stop.
    absl::Duration peer_patience = absl::Seconds(10);
    std::function<absl::Time()> steady_now = SteadyNow;
    std::function<void()> on_report;  // a report is ready to be sent
    std::function<void()> on_end;     // the attempt's thread has ended
  };

  // A new one, as ordered.
  Attempt(Node& node, AttemptName name, v1::StartAttempt order);
  // One that an earlier agent left in the folder; its trainer is dead. Does nothing but hold its journal until GoOn().
  Attempt(Node& node, AttemptName name);
  ~Attempt();  // abandons it

  // The server still wants an attempt that was left: publishes what its trainer finished, or reports it as lost.
  // `credential`: as in an order.
  void GoOn(const std::string& credential);

  // The server wants it to end: checkpoint, kill after `grace`, report STOPPED. `job_goes_on`: the checkpoint is stored
  // before that; else one of several nodes is killed at once.
  void Stop(absl::Duration grace, bool job_goes_on);
  // A checkpoint after the running step, if its trainer runs.
  void Checkpoint() { checkpoint_asked_ = true; }
  // The agent ends: as Stop(), but a publication is left for the next agent, unreported.
  void Suspend(absl::Duration grace);
  // The server has forgotten it: kill, report nothing.
  void Abandon();

  // For the session. Never block on the disk.
  std::optional<v1::AttemptReport> NextReport();
  void Rewind(int64_t acknowledged);
  void Acknowledge(int64_t sequence);
  int64_t backlog() const;

  // Its thread has ended (or has not begun): no process of it is left.
  bool done() const { return done_; }
  // Its trainer runs, or may still be started. False before the report that says so.
  bool uses_devices() const { return uses_devices_; }
  const v1::StartAttempt& order() const { return order_; }
  // Nothing of it is of use any more: abandoned and done, or its last report is acknowledged.
  bool settled() const;
  const AttemptName& name() const { return name_; }

 private:
  enum class Wish { kNone, kStop, kSuspend, kAbandon };

  void Begin(void (Attempt::*life)());
  void Live();
  void LiveAgain();
  void OpenJournal();
  v1::AttemptEnded Work();
  v1::AttemptEnded WorkAgain();
  absl::StatusOr<FileLock> WaitForRunFolder();
  absl::StatusOr<InputCache::Lease> MakeInputsLocal();
  absl::Status FetchCheckpoint();
  absl::Status WriteSpec(const InputCache::Lease& inputs);
  v1::AttemptEnded Train();
  void FollowWish(TrainerProcess& trainer, std::optional<absl::Time>& kill_at);
  void OnEventLine(const std::string& line, AttemptLog& log, AgentMetrics::Training& training, StallWatch& watch);
  v1::AttemptEnded EndOf(const TrainerProcess::Exit& exit, bool out_of_memory, const AttemptLog& log) const;
  v1::AttemptEnded FailureOfTrainer() const;
  v1::AttemptEnded Crashed(std::string message, const std::string& cause, const AttemptLog& log) const;
  v1::AttemptEnded Publish();
  absl::Status StoreArtifact(const std::string& folder, const Manifest& manifest);
  CheckpointUpload::Options UploadOptions() const;
  void OnCheckpoint(const nlohmann::json& event);
  v1::AttemptEnded StoreLastCheckpoint(v1::AttemptEnded ended);
  void ReportStoredCheckpoint();
  v1::AttemptEnded EndAfterError(const absl::Status& status) const;
  // Nothing for an end without outcome: the attempt is forgotten, or left for the next agent.
  void ReportEnd(v1::AttemptEnded ended);
  void Report(v1::AttemptReport report);
  void ReportLine(const std::string& line);
  void MakeWish(Wish wish, absl::Duration grace);
  Wish wish() const;
  // Of one node, or on the leading one of several. Also true of what an earlier agent left, whose order is not known.
  bool leads() const { return order_.gang().node_rank() == 0; }
  std::string Folder() const { return node_.folder.AttemptFolder(name_); }
  std::string SpecFile() const { return Folder() + "/spec.json"; }
  // The trainer's. Only the leading node keeps it for later attempts of the job.
  std::string RunFolder() const { return leads() ? node_.folder.RunFolder(name_.job) : Folder() + "/run"; }
  std::string CheckpointsFolder() const { return RunFolder() + "/" + kCheckpointsFolder; }

  Node& node_;
  const AttemptName name_;
  const v1::StartAttempt order_;
  AttemptPass pass_;           // set before the thread begins
  Cancellation cancellation_;  // of transfers and waits
  CheckpointUpload upload_;
  const bool full_model_;  // and not an adapter
  std::atomic<bool> checkpoint_asked_ = false;
  mutable std::mutex mutex_;
  Wish wish_ = Wish::kNone;
  absl::Time wish_end_ = absl::InfiniteFuture();  // when the grace is over
  std::shared_ptr<Journal> journal_;              // null until the thread has opened it
  int64_t last_report_ = 0;                       // number of `ended` once it is in the journal
  nlohmann::json last_event_;                     // the trainer's last word, null before; the attempt's thread only
  bool stored_ = false;                           // `artifact_stored` is reported; the attempt's thread only
  std::optional<RunCheckpoint> last_checkpoint_;  // that the trainer told of; the attempt's thread only
  std::string said_of_upload_;                    // why none could be stored; the attempt's thread only
  std::atomic<bool> done_ = true;
  std::atomic<bool> uses_devices_ = false;
  std::thread thread_;
};

}  // namespace luthier
