#include "client/lib/resumed_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/lib/call_deadline.h"
#include "client/lib/grpc_status.h"
#include "lib/base/steady_now.h"
#include "lib/channel/channel.h"

namespace luthier {

ResumedStream::ResumedStream(const Client& client, std::string subject, Options options, Handlers handlers)
    : client_(client), subject_(std::move(subject)), options_(options), handlers_(std::move(handlers)) {}

absl::Status ResumedStream::Run(const ReadOne& read, const std::function<bool()>& over) {
  const RetryPolicy& retry = client_.options().retry;
  last_heard_ = SteadyNow();
  for (int failures = 1;; ++failures) {
    const absl::Time opened = last_heard_;
    const grpc::Status status = Read(read);
    if (PauseOrStopped(absl::ZeroDuration())) return absl::CancelledError("the watch was stopped");
    if (status.ok() && over()) return absl::OkStatus();
    if (last_heard_ != opened) failures = 1;
    if (SteadyNow() >= options_.deadline)
      return absl::DeadlineExceededError(absl::StrCat(subject_, " was not over in time"));
    const absl::Status error = FromGrpc(status, client_.options().server);
    const bool give_up =
        connected_once_ ? SteadyNow() - last_heard_ > options_.longest_silence : failures >= retry.attempts;
    if (!status.ok() && (!IsBrokenStream(status) || give_up)) return error;
    if (connected_once_ && !interrupted_ && handlers_.on_interrupted) handlers_.on_interrupted(error);
    interrupted_ = connected_once_;
    if (PauseOrStopped(RetryPause(retry, failures, RandomFraction())))
      return absl::CancelledError("the watch was stopped");
    if (connected_once_) {
      AwaitConnection(client_.channel(),
                      [this] { return SteadyNow() >= options_.deadline || PauseOrStopped(absl::ZeroDuration()); });
    }
  }
}

grpc::Status ResumedStream::Read(const ReadOne& read) {
  grpc::ClientContext context;
  SetCallDeadline(context, options_.deadline);
  if (!Begin(context)) return grpc::Status::CANCELLED;
  const grpc::Status status = read(context);
  End();
  return status;
}

void ResumedStream::Heard() {
  last_heard_ = SteadyNow();
  connected_once_ = true;
  if (std::exchange(interrupted_, false) && handlers_.on_resumed) handlers_.on_resumed();
}

void ResumedStream::Stop() {
  stop_.Notify();
  absl::MutexLock lock(&mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

bool ResumedStream::Begin(grpc::ClientContext& context) {
  absl::MutexLock lock(&mutex_);
  if (PauseOrStopped(absl::ZeroDuration())) return false;  // a context that End() never sees is nobody's to cancel
  context_ = &context;
  return true;
}

void ResumedStream::End() {
  absl::MutexLock lock(&mutex_);
  context_ = nullptr;
}

}  // namespace luthier
