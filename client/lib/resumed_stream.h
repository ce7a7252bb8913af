// A stream of the server that is taken up again where it broke, across restarts of the server and breaks of the
// network.
#pragma once

#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/lib/client.h"
#include "client/lib/stop_signal.h"
#include "grpcpp/client_context.h"

namespace luthier {

// Run() once.
class ResumedStream {
 public:
  struct Options {
    absl::Time deadline = absl::InfiniteFuture();        // of SteadyNow(); then DEADLINE_EXCEEDED
    absl::Duration longest_silence = absl::Minutes(10);  // without a server: then UNAVAILABLE
  };
  // On the thread of Run(). Unset functions are not called.
  struct Handlers {
    // The connection broke; the stream is opened again.
    std::function<void(const absl::Status&)> on_interrupted;
    // It goes on behind the last message.
    std::function<void()> on_resumed;
  };
  // `subject`: what it is about, for messages.
  ResumedStream(const Client& client, std::string subject, Options options, Handlers handlers);

  // Opens one stream behind what was delivered, calls Heard() for each message before it is delivered, and returns how
  // the stream ended.
  using ReadOne = std::function<grpc::Status(grpc::ClientContext& context)>;
  // Reads one stream after another until one ends well and `over` holds. Errors: NOT_FOUND; CANCELLED after Stop();
  // UNAVAILABLE if there is no server at the start (after the client's retries) or for `longest_silence` later;
  // DEADLINE_EXCEEDED.
  absl::Status Run(const ReadOne& read, const std::function<bool()>& over = [] { return true; });
  void Heard();

  // Ends Run() soon. Any thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  grpc::Status Read(const ReadOne& read) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Begin(grpc::ClientContext& context) ABSL_LOCKS_EXCLUDED(mutex_);
  void End() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether Stop() was called, before or during the pause.
  bool PauseOrStopped(absl::Duration pause) { return stop_.WaitFor(pause); }

  const Client& client_;
  const std::string subject_;
  const Options options_;
  const Handlers handlers_;

  // Of the thread in Run().
  bool connected_once_ = false;
  bool interrupted_ = false;
  absl::Time last_heard_;

  StopSignal stop_;
  absl::Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;  // of the stream that is open
};

}  // namespace luthier
