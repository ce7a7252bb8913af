#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/service/agents.h"
#include "bench/service/installation.h"
#include "bench/service/scenarios.h"
#include "lib/artifact/hash.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

// When jobs were acknowledged and their attempts started.
class Starts {
 public:
  void Submitted(const std::string& job, absl::Time time) {
    const std::lock_guard lock(mutex_);
    Add(job, time, true);
  }
  void Started(const std::string& job, absl::Time time) {
    const std::lock_guard lock(mutex_);
    Add(job, time, false);
  }
  double Percentile(double part) {
    const std::lock_guard lock(mutex_);
    return latencies_.Percentile(part);
  }

 private:
  // The order to start may overtake the reply.
  void Add(const std::string& job, absl::Time time, bool submitted) {
    const auto [other, first] = seen_.try_emplace(job, time);
    if (first) return;
    latencies_.Add(submitted ? absl::ZeroDuration() : time - other->second);
    seen_.erase(other);
  }
  std::mutex mutex_;
  std::map<std::string, absl::Time> seen_;
  Latencies latencies_;
};

v1::SessionRequest ReportOf(const std::string& attempt, int64_t sequence) {
  v1::SessionRequest request;
  request.mutable_report()->set_attempt(attempt);
  request.mutable_report()->set_sequence(sequence);
  return request;
}

void AddEvent(v1::SessionRequest& request, const std::string& type) {
  (*request.mutable_report()->mutable_trainer_event()->mutable_fields())["event"].set_string_value(type);
}

// What an agent reports of a job that trains in no time.
void Run(SimulatedAgent& agent, const std::string& attempt, const v1::ModelFile& artifact) {
  v1::SessionRequest started = ReportOf(attempt, 1), finished = ReportOf(attempt, 2), stored = ReportOf(attempt, 3),
                     ended = ReportOf(attempt, 4);
  AddEvent(started, "started");
  AddEvent(finished, "finished");
  stored.mutable_report()->mutable_artifact_stored()->set_kind(v1::ModelVersion::ADAPTER);
  *stored.mutable_report()->mutable_artifact_stored()->add_files() = artifact;
  ended.mutable_report()->mutable_ended()->set_outcome(v1::AttemptEnded::FINISHED);
  for (v1::SessionRequest* request : {&started, &finished, &stored, &ended}) agent.Send(std::move(*request));
}

// The artifact of every job, a file that the store holds already: what is measured is the control plane.
v1::ModelFile StoredArtifact() {
  std::string rows;
  for (int i = 0; i < 24; ++i) rows += ChatLine(absl::StrCat("row ", i), i % 2 == 0 ? "even" : "odd");
  v1::ModelFile artifact;
  artifact.set_path("adapter_model.safetensors");
  artifact.set_size_bytes(static_cast<int64_t>(rows.size()));
  artifact.set_sha256(Sha256Hex(rows));
  return artifact;
}

// One caller, until `stop`.
Submitted SubmitUntil(const std::atomic<bool>& stop, Installation& installation, Starts& starts) {
  Submitted submitted;
  const auto stub = v1::FineTuningService::NewStub(installation.Connect());
  while (!stop) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::FineTuningJob job;
    const absl::Time begin = absl::Now();
    Require(stub->CreateFineTuningJob(&context, installation.Request(), &job), "CreateFineTuningJob");
    submitted.latencies.Add(absl::Now() - begin);
    submitted.ids.push_back(job.name().substr(5));
    starts.Submitted(submitted.ids.back(), absl::Now());
  }
  return submitted;
}

}  // namespace

Json BenchLifecycle(const BenchOptions& options) {
  Installation installation(options);
  const v1::ModelFile artifact = StoredArtifact();
  Starts starts;
  std::atomic<int64_t> done = 0;
  const auto agents = StartAgents([&] { return installation.Connect(); }, options.agents,
                                  [&](SimulatedAgent& agent, const v1::SessionResponse& message) {
                                    if (message.has_start_attempt()) {
                                      const std::string& attempt = message.start_attempt().attempt();
                                      starts.Started(attempt.substr(5, attempt.find('/', 5) - 5), absl::Now());
                                      Run(agent, attempt, artifact);
                                    } else if (message.has_report_ack() && message.report_ack().sequence() == 4) {
                                      ++done;
                                    }
                                  });
  std::atomic<bool> stop = false;
  std::vector<Submitted> of_callers(static_cast<size_t>(options.callers));
  std::vector<std::thread> callers;
  const absl::Time start = absl::Now();
  for (int caller = 0; caller < options.callers; ++caller) {
    callers.emplace_back(
        [&, caller] { of_callers[static_cast<size_t>(caller)] = SubmitUntil(stop, installation, starts); });
  }
  absl::SleepFor(options.time);
  const int64_t finished = done;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  Submitted all;
  for (const Submitted& of_caller : of_callers) all.Add(of_caller);
  const bool drained = WaitFor([&] { return done >= static_cast<int64_t>(all.ids.size()); }, std::chrono::minutes(2));
  for (const auto& agent : agents) agent->Close();
  installation.Kill();
  return {{"scenario", "lifecycle"},
          {"callers", options.callers},
          {"agents", options.agents},
          {"seconds", seconds},
          {"requests_per_s", static_cast<double>(finished) / seconds},
          {"p50_ms", all.latencies.Percentile(0.5)},
          {"p99_ms", all.latencies.Percentile(0.99)},
          {"submit_to_start_p50_ms", starts.Percentile(0.5)},
          {"submit_to_start_p99_ms", starts.Percentile(0.99)},
          {"all_done", drained},
          {"lost_acks", CountLost(installation.data_dir(), all.ids)}};
}

}  // namespace luthier
