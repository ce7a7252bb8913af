#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "absl/time/clock.h"
#include "bench/service/agents.h"
#include "bench/service/installation.h"
#include "bench/service/scenarios.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

constexpr int kWatchersAConnection = 100;

// Counts what it reads and looks for gaps; a lazy one reads its first message only.
class Watcher : public grpc::ClientReadReactor<v1::WatchFineTuningJobResponse> {
 public:
  Watcher(v1::FineTuningService::Stub& stub, const std::string& job, bool lazy) : lazy_(lazy) {
    request_.set_name("jobs/" + job);
    stub.async()->WatchFineTuningJob(&context_, &request_, this);
    AddHold();
    StartRead(&message_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (message_.has_event()) {
      gaps_ += message_.event().sequence() == sequence_ + 1 ? 0 : 1;
      sequence_ = message_.event().sequence();
    }
    ++messages_;
    if (!lazy_) StartRead(&message_);
  }
  void OnDone(const grpc::Status&) override {
    const std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }
  void Close() {
    context_.TryCancel();
    RemoveHold();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
  }
  int64_t sequence() const { return sequence_; }
  int64_t messages() const { return messages_; }
  int64_t gaps() const { return gaps_; }

 private:
  const bool lazy_;
  grpc::ClientContext context_;
  v1::WatchFineTuningJobRequest request_;
  v1::WatchFineTuningJobResponse message_;
  std::atomic<int64_t> sequence_ = 0, messages_ = 0, gaps_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
};

// Returns when each has its first message. The first one is lazy.
std::vector<std::unique_ptr<Watcher>> StartWatchers(Installation& installation, int count) {
  std::vector<std::unique_ptr<Watcher>> watchers;
  std::unique_ptr<v1::FineTuningService::Stub> connection;
  for (int i = 0; i < count; ++i) {
    if (i % kWatchersAConnection == 0) connection = v1::FineTuningService::NewStub(installation.Connect());
    watchers.push_back(std::make_unique<Watcher>(*connection, "watched", /*lazy=*/i == 0));
  }
  for (const auto& watcher : watchers) {
    Require(WaitFor([&] { return watcher->messages() > 0; }, std::chrono::minutes(2)), "a watcher got no snapshot");
  }
  return watchers;
}

// Without its number.
v1::SessionRequest ProgressReport() {
  v1::SessionRequest request;
  request.mutable_report()->set_attempt("jobs/watched/attempts/1");
  auto& fields = *request.mutable_report()->mutable_trainer_event()->mutable_fields();
  fields["event"].set_string_value("progress");
  fields["note"].set_string_value(std::string(1000, 'x'));
  return request;
}

}  // namespace

Json BenchWatch(const BenchOptions& options) {
  Installation installation(options);
  const auto stub = v1::FineTuningService::NewStub(installation.Connect());
  grpc::ClientContext context;
  v1::CreateFineTuningJobRequest request = installation.Request();
  request.set_job_id("watched");
  v1::FineTuningJob job;
  Require(stub->CreateFineTuningJob(&context, request, &job), "CreateFineTuningJob");
  std::atomic<int64_t> acknowledged = 0;
  std::atomic<bool> started = false;
  const auto agents = StartAgents([&] { return installation.Connect(); }, 1,
                                  [&](SimulatedAgent&, const v1::SessionResponse& message) {
                                    if (message.has_start_attempt()) started = true;
                                    if (message.has_report_ack()) acknowledged = message.report_ack().sequence();
                                  });
  Require(WaitFor([&] { return started.load(); }), "the job was not started");

  const int64_t resident = installation.server().ResidentBytes();
  const std::vector<std::unique_ptr<Watcher>> watchers = StartWatchers(installation, options.watchers);
  // One progress report after the other, each sent once everybody but the slow reader has seen the last.
  v1::SessionRequest report = ProgressReport();
  Latencies latencies;
  const int64_t first = 2;  // sequences 1 and 2 are "queued" and "attempt 1"
  int64_t reports = 0;
  const absl::Time start = absl::Now();
  while (absl::Now() - start < options.time) {
    report.mutable_report()->set_sequence(++reports);
    const absl::Time begin = absl::Now();
    agents[0]->Send(report);
    Require(WaitFor(
                [&] {
                  return std::all_of(watchers.begin() + 1, watchers.end(),
                                     [&](const auto& watcher) { return watcher->sequence() >= first + reports; });
                },
                std::chrono::minutes(1)),
            "a watcher did not see a report");
    latencies.Add(absl::Now() - begin);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const int64_t grown = installation.server().ResidentBytes() - resident;
  int64_t gaps = 0;
  for (const auto& watcher : watchers) gaps += watcher->gaps();
  grpc::ClientContext last_look;
  v1::GetFineTuningJobRequest get;
  get.set_name(job.name());
  const int64_t acknowledged_events = first + acknowledged;
  Require(stub->GetFineTuningJob(&last_look, get, &job), "GetFineTuningJob");
  for (const auto& watcher : watchers) watcher->Close();
  for (const auto& agent : agents) agent->Close();
  return {{"scenario", "watch"},
          {"callers", static_cast<int>(agents.size())},
          {"watchers", options.watchers},
          {"seconds", seconds},
          {"requests_per_s", static_cast<double>(reports) * options.watchers / seconds},
          {"p50_ms", latencies.Percentile(0.5)},
          {"p99_ms", latencies.Percentile(0.99)},
          {"gaps", gaps},
          {"lost_acks", std::max<int64_t>(0, acknowledged_events - job.last_event_sequence())},
          {"rss_bytes_per_watcher", static_cast<double>(grown) / options.watchers}};
}

}  // namespace luthier
