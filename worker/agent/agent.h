// The agent: has the attempts of this node do what the server says (core/roster), and keeps the folder tidy.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "lib/base/gang_address.h"
#include "worker/agent/agent_metrics.h"
#include "worker/agent/attempt.h"
#include "worker/agent/core/roster.h"
#include "worker/agent/data_folder.h"
#include "worker/agent/input_cache.h"
#include "worker/agent/inventory.h"
#include "worker/agent/server_files.h"
#include "worker/agent/session.h"

namespace luthier {

class Agent final : public Session::Peer {
 public:
  struct Options {
    std::string node_id;
    std::string instance;  // which of the agents of this name it is
    std::string version;
    std::string trainer;
    std::string shared_store;
    std::map<std::string, std::string> labels;  // for jobs that ask for them
    GangAddress gang_address;                   // without a host: no jobs of several nodes
    // Bytes of run folders that no attempt uses but whose job may come back; the ones longest unused go first.
    int64_t max_kept_bytes = int64_t{50} << 30;
    // See Attempt::Node.
    int64_t max_checkpoint_bytes = int64_t{1} << 30;
    int64_t checkpoint_bytes_per_second = int64_t{50} << 20;
    absl::Duration stall_after = absl::Minutes(15);
    // Called when there is a report to send.
    std::function<void()> wake_session = [] {};
    // Called when an attempt has ended: no report says so of one that the server has forgotten.
    std::function<void()> heartbeat_now = [] {};
  };

  // Ends what an earlier agent left running and takes over its attempts. Everything given must outlive the agent; the
  // session must be closed before it ends.
  Agent(Options options, const DataFolder& folder, InputCache& cache, ArtifactSink& artifacts, AgentMetrics& metrics,
        const Inventory& inventory);
  ~Agent() override;

  // The agent is going to end: the server hears of it, trainers are asked for a checkpoint and killed after `grace`,
  // their ends are reported. Returns when no process is left and, while the session is open, the server has every
  // report or `patience` is over.
  void Leave(Session& session, absl::Duration grace, absl::Duration patience);

  v1::Register Registration() override;
  void OnRegistered(const v1::Registered& registered) override;
  void OnStart(const v1::StartAttempt& order) override;
  void OnStop(const v1::StopAttempt& order) override;
  void OnCheckpoint(const v1::CheckpointAttempt& order) override;
  void OnAck(const v1::ReportAck& ack) override;
  v1::Heartbeat NextHeartbeat() override;
  std::optional<v1::AttemptReport> NextReport() override;
  void OnBreak(const std::string& why) override;

 private:
  using Attempts = std::vector<std::shared_ptr<Attempt>>;

  void TakeOver();
  void ObserveBacklog();
  void Tidy();
  void RemoveSettled();
  void RemoveJobsOver();
  void RemoveOldRunFolders();
  void ListKeptJobs();
  bool RemoveJob(const std::string& job);
  Attempts Snapshot() const;
  void ScheduleTidying();

  const Options options_;
  const DataFolder& folder_;
  InputCache& cache_;
  AgentMetrics& metrics_;
  const Inventory& inventory_;
  Attempt::Node node_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Roster roster_;                       // its entries are `Attempt`s
  std::vector<std::string> kept_jobs_;  // ids; as the tidier last saw them, oldest first
  bool closed_ = false, untidy_ = true;
  bool said_break_ = false;  // once an absence, not at every try
  std::thread tidier_;       // deletes what is of no use any more, so that nobody who listens waits for the disk
};

}  // namespace luthier
