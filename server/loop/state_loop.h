// The one thread that changes the state. Commands wait in a bounded queue; a batch of them is decided in memory,
// written in one transaction, and only then answered and sent: an acknowledged command survives a crash.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/batch.h"
#include "server/store/store.h"

namespace luthier {

class StateLoop {
 public:
  using Done = std::function<void(const absl::Status&)>;
  struct Options {
    size_t queue_capacity = 32768;  // a thousand agents that come back at once, each with reports to send
    size_t batch = 512;             // bounds how long the first of a batch waits
    absl::Duration tick = absl::Milliseconds(500);
    // All on the loop thread, after the commit of a batch. `on_batch`: what it wrote. `send`: what agents have to be
    // told.
    std::function<void(const State&, const Writes&, absl::Time now)> on_batch;
    std::function<void(const std::vector<Effect>&)> send;
    std::function<void(absl::Duration, size_t batch)> on_commit_time;
    // Every few seconds.
    std::function<void(int64_t)> on_log_bytes;
    // Why nothing new is written for now (a full disk), or OK once it is again: when that changes.
    std::function<void(const absl::Status&)> on_refusal;
    // The database failed for good: nothing is accepted any more, and the process should end. Once, on the loop thread.
    std::function<void(const absl::Status&)> on_failure;
  };

  // `store` must outlive the loop.
  StateLoop(Store& store, State state, Options options);
  ~StateLoop();  // finishes what was accepted

  // Runs `command` and returns its status once its batch is durable. Errors of its own: RESOURCE_EXHAUSTED if the queue
  // is full; UNAVAILABLE if the batch could not be written (then nothing of it happened), or the loop has stopped.
  absl::Status Run(Command command);
  // The same without waiting: `done` is called on the loop thread, where it must not block, or at once if refused.
  void Post(Command command, Done done);
  // For what nobody waits for and may be lost (heartbeats): runs with the next batch, at the latest with the next tick.
  void PostIdly(Command command);

  // Refuses new commands; those that were accepted are finished.
  void Stop();

 private:
  struct Waiting {
    Command command;
    Done done;
  };
  void Loop();
  void WaitForWork(std::unique_lock<std::mutex>& lock);
  void Turn(const std::vector<Command>& commands, const std::vector<Done>& dones, absl::Time now);
  absl::Status Write(const Writes& writes, size_t batch, absl::Time now);
  void KeepLogShort();
  // Nothing is accepted any more.
  void Fail(const absl::Status& status);
  absl::Time Now();

  Store& store_;
  State state_;  // loop thread only, as what follows
  Options options_;
  absl::Duration wall_ahead_;                        // of SteadyNow(), which is what the following are by
  absl::Time last_turn_;                             // when it began
  absl::Time next_emptying_;                         // of the store's log
  absl::Time next_weighing_ = absl::InfinitePast();  // of the store's log
  absl::Time awake_until_ = absl::InfinitePast();
  absl::Status failure_;  // sticky
  bool refused_ = false;  // whether the last batch could not be written

  std::mutex mutex_;  // of what follows
  std::condition_variable work_;
  std::deque<Waiting> queue_;
  std::deque<Command> idle_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
