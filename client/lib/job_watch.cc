#include "client/lib/job_watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/lib/grpc_status.h"

namespace luthier {

JobWatch::JobWatch(Client& client, std::string job, Options options, JobWatchHandlers handlers)
    : client_(client),
      job_name_(std::move(job)),
      options_(options),
      handlers_(std::move(handlers)),
      cursor_(options.after_sequence) {}

absl::StatusOr<v1::FineTuningJob> JobWatch::Run() {
  const RetryPolicy& retry = client_.options().retry;
  last_heard_ = absl::Now();
  for (int failures = 1;; ++failures) {
    const absl::Time opened = last_heard_;
    const grpc::Status status = ReadStream();
    if (PauseOrStopped(absl::ZeroDuration())) return absl::CancelledError("the watch was stopped");
    if (status.ok() && IsTerminal(job_.state())) return job_;
    if (last_heard_ != opened) failures = 1;
    if (absl::Now() >= options_.deadline) {
      return absl::DeadlineExceededError(absl::StrCat(job_name_, " was not over in time"));
    }
    const absl::Status error = FromGrpc(status, client_.options().server);
    const bool give_up =
        connected_once_ ? absl::Now() - last_heard_ > options_.longest_silence : failures >= retry.attempts;
    if (!status.ok() && (!IsBrokenStream(status) || give_up)) return error;
    if (connected_once_ && !interrupted_ && handlers_.on_interrupted) handlers_.on_interrupted(error);
    interrupted_ = connected_once_;
    if (PauseOrStopped(RetryPause(retry, failures, RandomFraction())))
      return absl::CancelledError("the watch was stopped");
  }
}

grpc::Status JobWatch::ReadStream() {
  grpc::ClientContext context;
  if (options_.deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(options_.deadline));
  if (!Begin(context)) return grpc::Status::CANCELLED;
  v1::WatchFineTuningJobRequest request;
  request.set_name(job_name_);
  request.set_after_sequence(cursor_);
  const auto reader = client_.jobs().WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  while (reader->Read(&message)) {
    last_heard_ = absl::Now();
    connected_once_ = true;
    if (std::exchange(interrupted_, false) && handlers_.on_resumed) handlers_.on_resumed();
    Deliver(message);
  }
  const grpc::Status status = reader->Finish();
  End();
  return status;
}

void JobWatch::Deliver(const v1::WatchFineTuningJobResponse& message) {
  if (message.has_job()) {
    job_ = message.job();
    // Less than what was delivered: the server was restored from a backup, and numbers what happens now from there on.
    cursor_ = std::min(cursor_, job_.last_event_sequence());
    if (handlers_.on_job) handlers_.on_job(job_);
  }
  if (message.has_event() && message.event().sequence() > cursor_) {
    cursor_ = message.event().sequence();
    if (handlers_.on_event) handlers_.on_event(message.event());
  }
}

void JobWatch::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

bool JobWatch::Begin(grpc::ClientContext& context) {
  absl::MutexLock lock(&mutex_);
  context_ = &context;
  return !stopped_;
}

void JobWatch::End() {
  absl::MutexLock lock(&mutex_);
  context_ = nullptr;
}

bool JobWatch::PauseOrStopped(absl::Duration pause) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&stopped_), pause);
}

bool IsTerminal(v1::FineTuningJob::State state) {
  return state == v1::FineTuningJob::SUCCEEDED || state == v1::FineTuningJob::FAILED ||
         state == v1::FineTuningJob::CANCELLED;
}

}  // namespace luthier
