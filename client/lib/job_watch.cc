#include "client/lib/job_watch.h"

#include <algorithm>
#include <utility>

namespace luthier {

JobWatch::JobWatch(Client& client, std::string job, Options options, JobWatchHandlers handlers)
    : client_(client),
      job_name_(std::move(job)),
      handlers_(std::move(handlers)),
      stream_(client, job_name_, {.deadline = options.deadline, .longest_silence = options.longest_silence},
              {.on_interrupted = handlers_.on_interrupted, .on_resumed = handlers_.on_resumed}),
      cursor_(options.after_sequence) {}

absl::StatusOr<v1::FineTuningJob> JobWatch::Run() {
  const absl::Status status = stream_.Run([this](grpc::ClientContext& context) { return Read(context); },
                                          [this] { return IsTerminal(job_.state()); });
  if (!status.ok()) return status;
  return job_;
}

grpc::Status JobWatch::Read(grpc::ClientContext& context) {
  v1::WatchFineTuningJobRequest request;
  request.set_name(job_name_);
  request.set_after_sequence(cursor_);
  const auto reader = client_.jobs().WatchFineTuningJob(&context, request);
  v1::WatchFineTuningJobResponse message;
  while (reader->Read(&message)) {
    stream_.Heard();
    Deliver(message);
  }
  return reader->Finish();
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

bool IsTerminal(v1::FineTuningJob::State state) {
  return state == v1::FineTuningJob::SUCCEEDED || state == v1::FineTuningJob::FAILED ||
         state == v1::FineTuningJob::CANCELLED;
}

}  // namespace luthier
