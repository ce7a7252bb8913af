// Brings an attempt's newest checkpoint into the server's store, on a thread of its own: training does not wait for it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "luthier/v1/worker.pb.h"
#include "worker/agent/cancellation.h"
#include "worker/agent/run_checkpoints.h"
#include "worker/agent/server_files.h"

namespace luthier {

class CheckpointUpload {
 public:
  struct Options {
    const AttemptPass* pass = nullptr;  // of the attempt; read when something is sent
    std::string checkpoints;            // folder of the run
    std::string links;                  // folder on the same disk, for what is on its way
    std::string shared_store;           // folder; empty: none
    int64_t bytes_per_second = 0;       // while nobody waits for it; 0: as fast as it goes
    std::set<std::string> stored;       // hashes of files that the store holds
  };
  // `sink` must outlive it.
  CheckpointUpload(Options options, ArtifactSink& sink) : options_(std::move(options)), sink_(sink) {}
  ~CheckpointUpload();  // gives up

  // The attempt's thread.
  // A checkpoint that the trainer has written. It takes the place of one that has not begun; one that is on its way, or
  // stored, is not sent again.
  void Offer(const RunCheckpoint& checkpoint);
  // Waits for what was offered, at full speed and for `patience` at most, and gives up the rest.
  void Finish(absl::Duration patience);
  // What became of an upload since the last call: it is stored, or why it cannot be.
  std::optional<absl::StatusOr<v1::CheckpointStored>> TakeOutcome();

  // Any thread. Nothing is uploaded any more.
  void GiveUp();

 private:
  void Run();
  absl::StatusOr<v1::CheckpointStored> Store(const RunCheckpoint& checkpoint);
  absl::Status Send(const Manifest& manifest, const std::string& folder);
  void Pace(int64_t bytes);
  bool HasNewer() const;
  std::string LinksOf(const RunCheckpoint& checkpoint) const;

  const Options options_;
  ArtifactSink& sink_;
  Cancellation cancellation_;
  std::set<std::string> stored_ = options_.stored;  // the upload's thread only
  mutable std::mutex mutex_;                        // of what follows
  std::condition_variable changed_;
  std::optional<RunCheckpoint> next_;
  int64_t newest_step_ = 0;  // that is on its way or stored
  std::optional<absl::StatusOr<v1::CheckpointStored>> outcome_;
  bool busy_ = false, hurried_ = false, closed_ = false;
  std::thread thread_;
};

}  // namespace luthier
