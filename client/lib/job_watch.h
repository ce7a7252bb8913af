// Follows a job to its end across restarts of the server and breaks of the network.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/lib/client.h"
#include "client/lib/resumed_stream.h"
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
    absl::Time deadline = absl::InfiniteFuture();        // of SteadyNow(); then DEADLINE_EXCEEDED
    absl::Duration longest_silence = absl::Minutes(10);  // without a server: then UNAVAILABLE
  };
  JobWatch(Client& client, std::string job, Options options, JobWatchHandlers handlers);

  // Blocks until the job is over and returns it. Errors: those of ResumedStream.
  absl::StatusOr<v1::FineTuningJob> Run();

  // Ends Run() soon. Any thread.
  void Stop() { stream_.Stop(); }

 private:
  grpc::Status Read(grpc::ClientContext& context);
  void Deliver(const v1::WatchFineTuningJobResponse& message);

  Client& client_;
  const std::string job_name_;
  const JobWatchHandlers handlers_;
  ResumedStream stream_;
  int64_t cursor_;
  v1::FineTuningJob job_;
};

// SUCCEEDED, FAILED or CANCELLED.
bool IsTerminal(v1::FineTuningJob::State state);

}  // namespace luthier
