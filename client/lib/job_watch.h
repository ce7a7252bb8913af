// Follows a job to its end across restarts of the server and breaks of the network.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/lib/client.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// What a watcher is told, on the thread of Run(). Unset functions are not called.
struct JobWatchHandlers {
  // The job as it is: at the start, after each resumption, and once it is over.
  std::function<void(const v1::FineTuningJob&)> on_job;
  // Every event once, in order, without gaps.
  std::function<void(const v1::JobEvent&)> on_event;
  // The connection broke; the watch dials again.
  std::function<void(const absl::Status&)> on_interrupted;
  // It goes on behind the last event.
  std::function<void()> on_resumed;
};

// One watch; Run() once.
class JobWatch {
 public:
  struct Options {
    int64_t after_sequence = 0;                          // events up to here are left out
    absl::Time deadline = absl::InfiniteFuture();        // then DEADLINE_EXCEEDED
    absl::Duration longest_silence = absl::Minutes(10);  // without a server: then UNAVAILABLE
  };
  JobWatch(Client& client, std::string job, Options options, JobWatchHandlers handlers);

  // Blocks until the job is over and returns it. Errors: NOT_FOUND; CANCELLED after Stop(); UNAVAILABLE if there is no
  // server at the start (after the client's retries) or for `longest_silence` later; DEADLINE_EXCEEDED.
  absl::StatusOr<v1::FineTuningJob> Run();

  // Ends Run() soon. Any thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Reads one stream to its end.
  grpc::Status ReadStream() ABSL_LOCKS_EXCLUDED(mutex_);
  void Deliver(const v1::WatchFineTuningJobResponse& message);
  bool Begin(grpc::ClientContext& context) ABSL_LOCKS_EXCLUDED(mutex_);
  void End() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether Stop() was called, before or during the pause.
  bool PauseOrStopped(absl::Duration pause) ABSL_LOCKS_EXCLUDED(mutex_);

  Client& client_;
  const std::string job_name_;
  const Options options_;
  const JobWatchHandlers handlers_;

  // Of the thread in Run().
  int64_t cursor_;
  v1::FineTuningJob job_;
  bool connected_once_ = false;
  bool interrupted_ = false;
  absl::Time last_heard_;

  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;  // of the stream that is open
};

// SUCCEEDED, FAILED or CANCELLED.
bool IsTerminal(v1::FineTuningJob::State state);

}  // namespace luthier
