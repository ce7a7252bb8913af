#include "server/rpc/job_streams.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/job_answers.h"
#include "server/rpc/status.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(15);
// Messages that wait for a reader; beyond them it falls behind and reads the record.
constexpr size_t kPending = 64;
constexpr int kPage = 64;
constexpr int kTailLines = 100, kMaxTailLines = 10000;

// What tells one kind of stream from another.
template <typename Response>
struct StreamKind {
  const char* method;
  std::vector<std::string> types;  // of events that are read, `state` among them; empty: all
  bool snapshots = false;          // the job first and last
  bool follow = true;              // until the job is over; else until the newest event
  int tail = 0;                    // begin so many events of types[0] before the end
  absl::Status checked;            // what is wrong with the request itself
  std::function<bool(const v1::JobEvent&, Response&)> convert;  // false: nothing is sent for the event
};

// Reactions, the hub's thread and the tasks meet here; each holds `mutex_` for a moment. At most one write and one task
// are under way.
template <typename Response>
class JobStream final : public grpc::ServerWriteReactor<Response>,
                        public JobWatcher,
                        public std::enable_shared_from_this<JobStream<Response>> {
 public:
  JobStream(Backend& backend, const grpc::ServerContextBase& context, std::string name, int64_t after,
            StreamKind<Response> kind)
      : backend_(backend),
        context_(context),
        call_(backend.access.Admit(context, kind.method)),
        name_(std::move(name)),
        kind_(std::move(kind)),
        queued_(after) {}

  void Begin() {
    self_ = this->shared_from_this();
    if (!call_.ok()) return End(call_.status());
    if (!kind_.checked.ok()) return End(kind_.checked);
    const std::lock_guard lock(mutex_);
    Do([this] { Open(); });
  }

  void OnEvent(const std::shared_ptr<const v1::WatchFineTuningJobResponse>& event) override {
    const std::lock_guard lock(mutex_);
    const int64_t sequence = event->event().sequence();
    known_ = std::max(known_, sequence);
    if (sequence == queued_ + 1 && pending_.size() < kPending && !busy_) {
      if constexpr (std::is_same_v<Response, v1::WatchFineTuningJobResponse>) {
        Note(event->event());
        pending_.push_back(event);  // one message for all watchers
      } else {
        Queue(event->event());
      }
    }
    Advance();
  }
  void OnTick(absl::Time now) override {
    const std::lock_guard lock(mutex_);
    if (const absl::Status admitted = backend_.access.StillAdmits(*call_); !admitted.ok() && !end_) {
      end_ = admitted;
      // A reader that does not read would keep the stream open. The context is there: what is being written has to end
      // first, and that waits for the lock.
      if (writing_) context_.TryCancel();
      return Advance();
    }
    if (writing_ || busy_ || end_ || now - last_write_ < kHeartbeat) return;
    pending_.push_back(std::make_shared<Response>());
    Advance();
  }
  void OnClose() override {
    End(WithReason(absl::UnavailableError("the server is shutting down; watch again"), "SHUTTING_DOWN"));
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = nullptr;
    last_write_ = SteadyNow();
    if (!ok && !end_) end_ = absl::CancelledError("the client went away");
    Advance();
  }
  void OnCancel() override { End(absl::CancelledError("the client went away")); }
  void OnDone() override {
    if (watched_ > 0) backend_.watches.Remove(watched_, self_);
    backend_.metrics.ObserveCall(kind_.method, end_->code(), absl::Now() - start_);
    const std::shared_ptr<JobStream> last = std::move(self_);
  }

 private:
  using Message = std::shared_ptr<const Response>;

  // Below: `mutex_` is held, except in the tasks Open, Read and Close, which run on the pool.
  void Do(std::function<void()> task) {
    busy_ = true;
    backend_.tasks.Post([self = this->shared_from_this(), task = std::move(task)] { task(); });
  }
  void End(absl::Status status) {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = std::move(status);
    Advance();
  }
  void Note(const v1::JobEvent& event) {
    queued_ = event.sequence();
    if (event.state() != v1::FineTuningJob::STATE_UNSPECIFIED) over_ = IsTerminal(static_cast<JobState>(event.state()));
  }
  void Queue(const v1::JobEvent& event) {
    Note(event);
    auto message = std::make_shared<Response>();
    if (kind_.convert(event, *message)) pending_.push_back(std::move(message));
  }
  // The next thing to do, if nothing is under way.
  void Advance() {
    if (writing_ != nullptr || busy_ || finished_) return;
    const bool complete = over_ || (opened_ && !kind_.follow);
    if (end_) {
      finished_ = true;
      this->Finish(ToGrpcStatus(*end_));
    } else if (!pending_.empty()) {
      writing_ = std::move(pending_.front());
      pending_.pop_front();
      this->StartWrite(writing_.get());
    } else if (queued_ < known_) {
      Do([this] { Read(); });
    } else if (complete && (closing_ || !kind_.snapshots)) {
      end_ = absl::OkStatus();
      Advance();
    } else if (complete) {
      closing_ = true;
      Do([this] { Close(); });
    }
  }

  void Open() {
    const absl::StatusOr<std::string> id = ParseName("name", "jobs", name_);
    absl::StatusOr<RecordedJob> job = id.ok() ? backend_.store.GetJob(*id) : id.status();
    if (job.ok() && !call_->Sees(job->job.tenant)) job = DoesNotExist(name_);
    if (job.ok()) {
      const absl::Status added = backend_.watches.Add(job->job.number, call_->tenant, this->shared_from_this());
      watched_ = added.ok() ? job->job.number : 0;
      // Read again: what was committed before the hub knew this watcher is on record now.
      job = added.ok() ? backend_.store.GetJob(*id) : added;
    }
    absl::StatusOr<int64_t> cursor = 0;
    if (job.ok() && kind_.tail > 0) cursor = backend_.store.CursorBefore(watched_, kind_.types[0], kind_.tail);
    absl::StatusOr<Message> snapshot = nullptr;
    if (job.ok() && kind_.snapshots) snapshot = Snapshot(*job);
    const std::lock_guard lock(mutex_);
    busy_ = false;
    opened_ = true;
    if (!job.ok() || !cursor.ok() || !snapshot.ok()) {
      if (!end_) end_ = !job.ok() ? job.status() : !cursor.ok() ? cursor.status() : snapshot.status();
    } else {
      queued_ = std::max(queued_, *cursor);
      known_ = std::max(known_, job->job.last_event);
      queued_ = std::min(queued_, known_);  // the cursor may be from before the server was restored from a backup
      over_ = IsTerminal(job->job.state);
      if (kind_.snapshots) pending_.push_back(*std::move(snapshot));
    }
    Advance();
  }

  void Read() {
    int64_t after, known;
    {
      const std::lock_guard lock(mutex_);
      after = queued_;
      known = known_;
    }
    const absl::StatusOr<std::vector<Event>> events = backend_.store.Events(watched_, after, kPage, kind_.types);
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (!events.ok()) {
      if (!end_) end_ = events.status();
    } else {
      for (const Event& event : *events) Queue(ToProto(event));
      // All that was known before is on record, so nothing of these types lies between the last one read and there.
      if (events->size() < static_cast<size_t>(kPage)) queued_ = std::max(queued_, known);
    }
    Advance();
  }

  void Close() {
    const absl::StatusOr<RecordedJob> job = backend_.store.GetJob(name_.substr(name_.find('/') + 1));
    absl::StatusOr<Message> snapshot = job.ok() ? Snapshot(*job) : job.status();
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (snapshot.ok()) {
      pending_.push_back(*std::move(snapshot));
    } else if (!end_) {
      end_ = snapshot.status();
    }
    Advance();
  }

  // Waits for the state loop, which knows why a job waits.
  absl::StatusOr<Message> Snapshot(const RecordedJob& job) {
    auto message = std::make_shared<Response>();
    if constexpr (std::is_same_v<Response, v1::WatchFineTuningJobResponse>)
      LUTHIER_RETURN_IF_ERROR(AnswerJob(backend_, job, *message->mutable_job()));
    return message;
  }

  Backend& backend_;
  const grpc::ServerContextBase& context_;
  const absl::StatusOr<Call> call_;
  const std::string name_;
  const StreamKind<Response> kind_;
  const absl::Time start_ = absl::Now();
  std::shared_ptr<JobStream> self_;  // until gRPC is done with it
  int64_t watched_ = 0;              // number of the job once it is known

  std::mutex mutex_;   // of what follows
  int64_t queued_;     // sequence of the newest event that was looked at
  int64_t known_ = 0;  // highest sequence there is
  bool over_ = false;  // the newest change of state that was looked at was the last
  bool opened_ = false, closing_ = false, finished_ = false;
  bool busy_ = false;  // a task is under way
  std::deque<Message> pending_;
  Message writing_;
  absl::Time last_write_ = SteadyNow();
  std::optional<absl::Status> end_;
};

template <typename Response>
grpc::ServerWriteReactor<Response>* Start(Backend& backend, const grpc::ServerContextBase& context,
                                          const std::string& name, int64_t after, StreamKind<Response> kind) {
  absl::Status cursor;
  if (after < 0) {
    cursor = absl::InvalidArgumentError(absl::StrCat(
        "after_sequence: ", after, " is negative; give the sequence of the event that was seen last, or 0 for all"));
  }
  kind.checked = AllOf({ParseName("name", "jobs", name).status(), cursor, kind.checked});
  const auto stream = std::make_shared<JobStream<Response>>(backend, context, name, after, std::move(kind));
  stream->Begin();
  return stream.get();
}

bool ToMetrics(const v1::JobEvent& event, v1::StreamJobMetricsResponse& response) {
  if (!event.has_progress() && !event.has_evaluation()) return false;
  response.set_sequence(event.sequence());
  *response.mutable_create_time() = event.create_time();
  if (event.has_progress()) *response.mutable_progress() = event.progress();
  if (event.has_evaluation()) *response.mutable_evaluation() = event.evaluation();
  return true;
}

bool ToLine(const v1::JobEvent& event, v1::TailJobLogsResponse& response) {
  if (event.type() != "log") return false;
  response.set_sequence(event.sequence());
  *response.mutable_create_time() = event.create_time();
  response.set_attempt(event.attempt());
  response.set_line(event.message());
  return true;
}

}  // namespace

grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* StartJobWatch(Backend& backend,
                                                                        const grpc::ServerContextBase& context,
                                                                        const v1::WatchFineTuningJobRequest& request) {
  StreamKind<v1::WatchFineTuningJobResponse> kind{"WatchFineTuningJob"};
  kind.snapshots = true;
  kind.convert = [](const v1::JobEvent& event, v1::WatchFineTuningJobResponse& response) {
    *response.mutable_event() = event;
    return true;
  };
  return Start(backend, context, request.name(), request.after_sequence(), std::move(kind));
}

grpc::ServerWriteReactor<v1::StreamJobMetricsResponse>* StartJobMetrics(Backend& backend,
                                                                        const grpc::ServerContextBase& context,
                                                                        const v1::StreamJobMetricsRequest& request) {
  StreamKind<v1::StreamJobMetricsResponse> kind{"StreamJobMetrics", {"progress", "evaluation", "state"}};
  kind.convert = ToMetrics;
  return Start(backend, context, request.name(), request.after_sequence(), std::move(kind));
}

grpc::ServerWriteReactor<v1::TailJobLogsResponse>* StartJobLogs(Backend& backend,
                                                                const grpc::ServerContextBase& context,
                                                                const v1::TailJobLogsRequest& request) {
  StreamKind<v1::TailJobLogsResponse> kind{"TailJobLogs", {"log", "state"}};
  kind.follow = request.follow();
  if (request.after_sequence() == 0)
    kind.tail = request.lines() > 0 ? std::min(request.lines(), kMaxTailLines) : kTailLines;
  if (request.lines() < 0) {
    kind.checked = absl::InvalidArgumentError(
        absl::StrCat("lines: ", request.lines(), " is negative; give 1 to ", kMaxTailLines, ", or 0 for ", kTailLines));
  }
  kind.convert = ToLine;
  return Start(backend, context, request.name(), request.after_sequence(), std::move(kind));
}

}  // namespace luthier
