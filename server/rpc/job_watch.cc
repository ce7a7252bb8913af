#include "server/rpc/job_watch.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/status.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(15);
// Events that wait for a reader; beyond them it falls behind and reads the record.
constexpr size_t kPending = 64;
constexpr int kPage = 64;

using Message = std::shared_ptr<const v1::WatchFineTuningJobResponse>;

// Reactions, the hub's thread and the tasks meet here; each holds `mutex_` for a moment. At most one write and one task are under way.
class JobWatch final : public grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>,
                       public JobWatcher,
                       public std::enable_shared_from_this<JobWatch> {
 public:
  JobWatch(Backend& backend, std::string name, int64_t after) : backend_(backend), name_(std::move(name)), queued_(after) {}

  void Begin() {
    self_ = shared_from_this();
    const std::lock_guard lock(mutex_);
    Do([this] { Open(); });
  }

  void OnEvent(const Message& event) override {
    const std::lock_guard lock(mutex_);
    const int64_t sequence = event->event().sequence();
    known_ = std::max(known_, sequence);
    if (sequence == queued_ + 1 && pending_.size() < kPending && !busy_) Queue(event);
    Advance();
  }
  void OnTick(absl::Time now) override {
    const std::lock_guard lock(mutex_);
    if (writing_ || busy_ || end_ || now - last_write_ < kHeartbeat) return;
    pending_.push_back(std::make_shared<v1::WatchFineTuningJobResponse>());
    Advance();
  }
  void OnClose() override {
    End(WithReason(absl::UnavailableError("the server is shutting down; watch again"), "SHUTTING_DOWN"));
  }
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = nullptr;
    last_write_ = absl::Now();
    if (!ok && !end_) end_ = absl::CancelledError("the client went away");
    Advance();
  }
  void OnCancel() override { End(absl::CancelledError("the client went away")); }
  void OnDone() override {
    if (watched_ > 0) backend_.watches.Remove(watched_, self_);
    backend_.metrics.ObserveCall("WatchFineTuningJob", absl::StatusCodeToString(end_->code()), absl::Now() - start_);
    const std::shared_ptr<JobWatch> last = std::move(self_);
  }

 private:
  // Below: `mutex_` is held, except in the tasks Open, Read and Close, which run on the pool.
  void Do(std::function<void()> task) {
    busy_ = true;
    backend_.tasks.Post([self = shared_from_this(), task = std::move(task)] { task(); });
  }
  void End(absl::Status status) {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = std::move(status);
    Advance();
  }
  void Queue(Message event) {
    queued_ = event->event().sequence();
    if (event->event().state() != v1::FineTuningJob::STATE_UNSPECIFIED) {
      over_ = IsTerminal(static_cast<JobState>(event->event().state()));
    }
    pending_.push_back(std::move(event));
  }
  // The next thing to do, if nothing is under way.
  void Advance() {
    if (writing_ != nullptr || busy_ || finished_) return;
    if (end_) {
      finished_ = true;
      Finish(ToGrpcStatus(*end_));
    } else if (!pending_.empty()) {
      writing_ = std::move(pending_.front());
      pending_.pop_front();
      StartWrite(writing_.get());
    } else if (queued_ < known_) {
      Do([this] { Read(); });
    } else if (over_ && closing_) {
      end_ = absl::OkStatus();
      Advance();
    } else if (over_) {
      closing_ = true;
      Do([this] { Close(); });
    }
  }

  void Open() {
    const absl::StatusOr<std::string> id = ParseName("name", "jobs", name_);
    absl::StatusOr<RecordedJob> job = id.ok() ? backend_.store.GetJob(*id) : id.status();
    if (job.ok()) {
      const absl::Status added = backend_.watches.Add(job->job.number, shared_from_this());
      watched_ = added.ok() ? job->job.number : 0;
      // Read again: what was committed before the hub knew this watcher is on record now.
      job = added.ok() ? backend_.store.GetJob(*id) : added;
    }
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (!job.ok()) {
      if (!end_) end_ = job.status();
    } else {
      known_ = std::max(known_, job->job.last_event);
      over_ = IsTerminal(job->job.state);
      pending_.push_back(Snapshot(*job));
    }
    Advance();
  }

  void Read() {
    int64_t after;
    {
      const std::lock_guard lock(mutex_);
      after = queued_;
    }
    const absl::StatusOr<std::vector<Event>> events = backend_.store.Events(watched_, after, kPage);
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (!events.ok()) {
      if (!end_) end_ = events.status();
    } else {
      for (const Event& event : *events) {
        auto message = std::make_shared<v1::WatchFineTuningJobResponse>();
        *message->mutable_event() = ToProto(event);
        Queue(std::move(message));
      }
      // A cursor beyond the newest event, of a client that watched another job: nothing will ever come.
      if (events->empty()) known_ = queued_;
    }
    Advance();
  }

  void Close() {
    const absl::StatusOr<RecordedJob> job = backend_.store.GetJob(name_.substr(name_.find('/') + 1));
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (job.ok()) {
      pending_.push_back(Snapshot(*job));
    } else if (!end_) {
      end_ = job.status();
    }
    Advance();
  }

  static Message Snapshot(const RecordedJob& job) {
    auto message = std::make_shared<v1::WatchFineTuningJobResponse>();
    *message->mutable_job() = ToProto(job);
    return message;
  }

  Backend& backend_;
  const std::string name_;
  const absl::Time start_ = absl::Now();
  std::shared_ptr<JobWatch> self_;  // until gRPC is done with it
  int64_t watched_ = 0;             // number of the job once it is known

  std::mutex mutex_;  // of what follows
  int64_t queued_;    // sequence of the newest event in `pending_` or sent
  int64_t known_ = 0;  // highest sequence there is
  bool over_ = false;  // the newest queued change of state was the last
  bool closing_ = false;
  bool busy_ = false;  // a task is under way
  bool finished_ = false;
  std::deque<Message> pending_;
  Message writing_;
  absl::Time last_write_ = absl::Now();
  std::optional<absl::Status> end_;
};

}  // namespace

grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* StartJobWatch(Backend& backend, const std::string& name, int64_t after) {
  const auto watch = std::make_shared<JobWatch>(backend, name, after);
  watch->Begin();
  return watch.get();
}

}  // namespace luthier
