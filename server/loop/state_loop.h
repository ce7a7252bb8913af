// The one thread that changes the state. Commands wait in a bounded queue; a batch of them is decided in memory, written in
// one transaction, and only then answered and sent: an acknowledged command survives a crash.
#pragma once

#include <condition_variable>
#include <deque>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/state.h"
#include "server/store/store.h"

namespace luthier {

class StateLoop {
 public:
  using Command = std::function<absl::Status(State&, absl::Time now)>;
  struct Options {
    size_t queue_capacity = 4096;
    size_t batch = 256;  // bounds how long the first of a batch waits
    absl::Duration tick = absl::Milliseconds(500);
    // Both on the loop thread, after the commit of a batch if it wrote anything.
    std::function<void(const std::vector<Effect>&)> send;
    std::function<void(const State&)> on_commit;
    std::function<void(absl::Duration, size_t batch)> on_commit_time;
  };

  // `store` must outlive the loop.
  StateLoop(Store& store, State state, Options options);
  ~StateLoop();  // finishes what was accepted

  // Runs `command` and returns its status once its batch is durable. Errors of its own: RESOURCE_EXHAUSTED if the queue is full;
  // UNAVAILABLE if the batch could not be written (then nothing of it happened).
  absl::Status Run(Command command);

  // Blocks until a batch was committed after `seen` or `deadline`; returns the number of batches so far.
  uint64_t WaitForCommit(uint64_t seen, absl::Time deadline);

  // Refuses new commands and wakes everybody who waits; long streams then end.
  void Stop();
  bool stopping();

 private:
  struct Waiting {
    Command command;
    absl::Status status;
    bool done = false;
  };
  void Loop();
  // True if something was written.
  bool RunBatch(std::vector<Waiting*>& batch);

  Store& store_;
  State state_;  // loop thread only
  Options options_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Waiting*> queue_;
  uint64_t commits_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
