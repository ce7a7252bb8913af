#include "client/lib/resumed_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/lib/grpc_status.h"

namespace luthier {

ResumedStream::ResumedStream(const Client& client, std::string subject, Options options, Handlers handlers)
    : client_(client), subject_(std::move(subject)), options_(options), handlers_(std::move(handlers)) {}

absl::Status ResumedStream::Run(const ReadOne& read, const std::function<bool()>& over) {
  const RetryPolicy& retry = client_.options().retry;
  last_heard_ = absl::Now();
  for (int failures = 1;; ++failures) {
    const absl::Time opened = last_heard_;
    const grpc::Status status = Read(read);
    if (PauseOrStopped(absl::ZeroDuration())) return absl::CancelledError("the watch was stopped");
    if (status.ok() && over()) return absl::OkStatus();
    if (last_heard_ != opened) failures = 1;
    if (absl::Now() >= options_.deadline)
      return absl::DeadlineExceededError(absl::StrCat(subject_, " was not over in time"));
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

grpc::Status ResumedStream::Read(const ReadOne& read) {
  grpc::ClientContext context;
  if (options_.deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(options_.deadline));
  if (!Begin(context)) return grpc::Status::CANCELLED;
  const grpc::Status status = read(context);
  End();
  return status;
}

void ResumedStream::Heard() {
  last_heard_ = absl::Now();
  connected_once_ = true;
  if (std::exchange(interrupted_, false) && handlers_.on_resumed) handlers_.on_resumed();
}

void ResumedStream::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

bool ResumedStream::Begin(grpc::ClientContext& context) {
  absl::MutexLock lock(&mutex_);
  context_ = &context;
  return !stopped_;
}

void ResumedStream::End() {
  absl::MutexLock lock(&mutex_);
  context_ = nullptr;
}

bool ResumedStream::PauseOrStopped(absl::Duration pause) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&stopped_), pause);
}

}  // namespace luthier
