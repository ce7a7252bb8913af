#include "server/metrics/server_metrics.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace luthier {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& Latency() {
  static const Buckets buckets = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10};
  return buckets;
}

}  // namespace

ServerMetrics::ServerMetrics(prometheus::Registry& registry, const std::string& version)
    : jobs_(BuildGauge().Name("luthier_jobs").Help("Jobs by state").Register(registry)),
      queue_depth_(BuildGauge().Name("luthier_queue_depth").Help("Jobs that wait for a node").Register(registry).Add({})),
      oldest_queued_(BuildGauge()
                         .Name("luthier_oldest_queued_job_age_seconds")
                         .Help("Age of the oldest job that waits; 0 if none does")
                         .Register(registry)
                         .Add({})),
      agents_(BuildGauge().Name("luthier_agents").Help("Nodes by state").Register(registry)),
      submissions_(BuildCounter().Name("luthier_job_submissions_total").Help("Submissions by result").Register(registry)),
      handled_(BuildCounter().Name("luthier_grpc_server_handled_total").Help("Calls by method and code").Register(registry)),
      handling_seconds_(
          BuildHistogram().Name("luthier_grpc_server_handling_seconds").Help("Duration of calls").Register(registry)),
      commit_seconds_(BuildHistogram()
                          .Name("luthier_db_commit_seconds")
                          .Help("Duration of a group commit")
                          .Register(registry)
                          .Add({}, Latency())),
      commit_batch_(BuildHistogram()
                        .Name("luthier_db_commit_batch_size")
                        .Help("Commands in a group commit")
                        .Register(registry)
                        .Add({}, Buckets{0, 1, 2, 4, 8, 16, 32, 64, 128, 256})) {
  BuildGauge().Name("luthier_build_info").Help("Always 1").Register(registry).Add({{"version", version}}).Set(1);
}

void ServerMetrics::ObserveCall(absl::string_view method, int code, absl::Duration duration) {
  const std::string name(method);
  handled_.Add({{"method", name}, {"code", std::to_string(code)}}).Increment();
  handling_seconds_.Add({{"method", name}}, Latency()).Observe(absl::ToDoubleSeconds(duration));
  if (name == "CreateFineTuningJob") submissions_.Add({{"result", code == 0 ? "accepted" : "refused"}}).Increment();
}

void ServerMetrics::ObserveCommit(absl::Duration duration, size_t batch) {
  commit_seconds_.Observe(absl::ToDoubleSeconds(duration));
  commit_batch_.Observe(static_cast<double>(batch));
}

void ServerMetrics::ObserveState(const State& state, absl::Time now) {
  std::map<JobState, int> count;
  absl::Time oldest = now;
  for (const auto& [id, job] : state.jobs()) {
    ++count[job.state];
    if (IsWaiting(job.state)) oldest = std::min(oldest, job.create_time);
  }
  for (const JobState name : kAllStates) {
    jobs_.Add({{"state", absl::AsciiStrToLower(StateName(name))}}).Set(count[name]);
  }
  queue_depth_.Set(count[JobState::kQueued] + count[JobState::kRecovering]);
  oldest_queued_.Set(absl::ToDoubleSeconds(now - oldest));
  int ready = 0;
  for (const auto& [id, node] : state.nodes()) ready += node.ready ? 1 : 0;
  agents_.Add({{"state", "ready"}}).Set(ready);
  agents_.Add({{"state", "lost"}}).Set(static_cast<double>(state.nodes().size()) - ready);
}

}  // namespace luthier
