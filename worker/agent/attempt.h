// One attempt on this node, from the order to its last report. What it does next is decided by its course
// (core/attempt_course); its thread does it: makes the inputs local, starts and listens to the trainer, stores the
// artifact. What it has to say goes through the journal.
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
#include "worker/agent/cancellation.h"
#include "worker/agent/checkpoint_upload.h"
#include "worker/agent/core/attempt_course.h"
#include "worker/agent/core/attempt_path.h"
#include "worker/agent/core/roster.h"
#include "worker/agent/data_folder.h"
#include "worker/agent/input_cache.h"
#include "worker/agent/journal.h"
#include "worker/agent/memory_kills.h"
#include "worker/agent/server_files.h"
#include "worker/agent/stall_watch.h"
#include "worker/agent/trainer_process.h"

namespace luthier {

class Attempt final : public Roster::Entry {
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
    absl::Duration peer_patience = kPeerPatience;
    std::function<absl::Time()> steady_now = SteadyNow;
    std::function<void()> on_report;  // a report is ready to be sent
    std::function<void()> on_end;     // the attempt's thread has ended
  };

  // A new one, as ordered.
  Attempt(Node& node, AttemptPath name, v1::StartAttempt order);
  // One that an earlier agent left in the folder; its trainer is dead. Does nothing but hold its journal until GoOn().
  Attempt(Node& node, AttemptPath name);
  ~Attempt() override;  // abandons it

  void GoOn(const std::string& credential) override;
  void Stop(absl::Duration grace, bool job_goes_on) override;
  void Checkpoint() override;
  void Abandon() override;
  // The agent ends: as Stop(), but a publication is left for the next agent, unreported.
  void Suspend(absl::Duration grace);

  // For the session. Never block on the disk.
  std::optional<v1::AttemptReport> NextReport();
  void Rewind(int64_t acknowledged) override;
  void Acknowledge(int64_t sequence) override;
  int64_t backlog() const;

  // Its thread has ended (or has not begun): no process of it is left.
  bool done() const { return done_; }
  bool uses_devices() const override;
  bool settled() const override;
  const v1::StartAttempt& order() const override { return order_; }
  const AttemptPath& name() const override { return name_; }

 private:
  // What it holds while it lives.
  struct Holdings {
    std::optional<FileLock> run_folder;
    std::optional<InputCache::Lease> inputs;
  };
  void Begin();
  void Live();
  // False when there is nothing to do any more.
  bool GoThrough(AttemptCourse::Stage stage, Holdings& holdings);
  void OpenJournal();
  absl::Status Prepare(Holdings& holdings);
  absl::StatusOr<FileLock> WaitForRunFolder();
  absl::StatusOr<InputCache::Lease> MakeInputsLocal();
  absl::Status FetchCheckpoint();
  absl::Status WriteSpec(const InputCache::Lease& inputs);
  TrainerEnd Train();
  void Follow(TrainerProcess& trainer);
  void OnEventLine(const std::string& line, AttemptLog& log, AgentMetrics::Training& training, StallWatch& watch);
  void WriteDown(AttemptLog& log);
  void Publish();
  void ReportArtifact(v1::ModelVersion::Kind kind, const Manifest& manifest);
  CheckpointUpload::Options UploadOptions() const;
  void OnCheckpoint(const nlohmann::json& event);
  void StoreLastCheckpoint();
  void ReportStoredCheckpoint();
  void ReportEnd();
  void Report(v1::AttemptReport report);
  void ReportLine(const std::string& line);
  // Asks or tells the course something, under the lock.
  template <typename Question, typename... Arguments>
  auto Ask(Question question, const Arguments&... arguments) const {
    const std::lock_guard lock(mutex_);
    return std::invoke(question, course_, arguments...);
  }
  template <typename News, typename... Arguments>
  auto Tell(News news, const Arguments&... arguments) {
    const std::lock_guard lock(mutex_);
    return std::invoke(news, course_, arguments...);
  }
  bool leads() const { return course_.leads(); }  // never changes
  std::string Folder() const { return node_.folder.AttemptFolder(name_); }
  std::string SpecFile() const { return Folder() + "/spec.json"; }
  // The trainer's. Only the leading node keeps it for later attempts of the job.
  std::string RunFolder() const { return leads() ? node_.folder.RunFolder(name_.job) : Folder() + "/run"; }
  std::string CheckpointsFolder() const { return RunFolder() + "/" + kCheckpointsFolder; }

  Node& node_;
  const AttemptPath name_;
  const v1::StartAttempt order_;
  mutable std::mutex mutex_;  // of the course and of `journal_`
  AttemptCourse course_;
  AttemptPass pass_;           // set before the thread begins
  Cancellation cancellation_;  // of transfers and waits
  CheckpointUpload upload_;
  const bool full_model_;                         // and not an adapter
  std::shared_ptr<Journal> journal_;              // null until the thread has opened it
  std::optional<RunCheckpoint> last_checkpoint_;  // that the trainer told of; the attempt's thread only
  std::string said_of_upload_;                    // why none could be stored; the attempt's thread only
  std::atomic<bool> done_ = true;
  std::thread thread_;
};

}  // namespace luthier
