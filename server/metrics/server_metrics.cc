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

// Ready is one that takes work: a queue beside a node that an operator wants empty does not stand still.
absl::string_view StateOf(const Node& node, absl::Time now) {
  if (node.IsAway(now)) return "disconnected";
  if (node.leaving) return "drained";
  if (!node.ready) return "lost";
  if (node.IsQuarantined()) return "quarantined";
  if (node.outdated) return "outdated";
  return node.draining ? "drained" : "ready";
}

// Seconds to half a day: queues and jobs.
const Buckets& LongWaits() {
  static const Buckets buckets = {1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400};
  return buckets;
}

const Buckets& StepTimes() {
  static const Buckets buckets = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
  return buckets;
}

}  // namespace

ServerMetrics::ServerMetrics(prometheus::Registry& registry, const std::string& version)
    : queue_depth_(
          BuildGauge().Name("luthier_queue_depth").Help("Jobs that wait for a node").Register(registry).Add({})),
      oldest_queued_(BuildGauge()
                         .Name("luthier_oldest_queued_job_age_seconds")
                         .Help("Age of the oldest job that waits; 0 if none does")
                         .Register(registry)
                         .Add({})),
      submissions_(
          BuildCounter().Name("luthier_job_submissions_total").Help("Submissions by result").Register(registry)),
      accepted_(submissions_.Add({{"result", "accepted"}})),
      refused_(submissions_.Add({{"result", "refused"}})),
      queue_wait_(BuildHistogram()
                      .Name("luthier_job_queue_wait_seconds")
                      .Help("Time between the start of waiting and the placement on a node")
                      .Register(registry)
                      .Add({}, LongWaits())),
      handled_(
          BuildCounter().Name("luthier_grpc_server_handled_total").Help("Calls by method and code").Register(registry)),
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
                        .Add({}, Buckets{0, 1, 2, 4, 8, 16, 32, 64, 128, 256})),
      log_bytes_(BuildGauge()
                     .Name("luthier_db_wal_bytes")
                     .Help("Size of the database's log, which is emptied every minute unless a reader holds it")
                     .Register(registry)
                     .Add({})),
      tokens_per_second_(BuildGauge()
                             .Name("luthier_train_tokens_per_second")
                             .Help("Tokens a second of all running attempts, from their newest progress")
                             .Register(registry)
                             .Add({})),
      tokens_(BuildCounter()
                  .Name("luthier_train_tokens_total")
                  .Help("Tokens trained on, from progress reports")
                  .Register(registry)
                  .Add({})),
      step_seconds_(BuildHistogram()
                        .Name("luthier_train_step_seconds")
                        .Help("Duration of optimizer steps, from progress reports")
                        .Register(registry)
                        .Add({}, StepTimes())),
      gpu_used_(BuildGauge().Name("luthier_gpu_memory_used_bytes").Help("GPU memory in use").Register(registry)),
      gpu_total_(BuildGauge().Name("luthier_gpu_memory_total_bytes").Help("GPU memory in all").Register(registry)),
      last_backup_(BuildGauge()
                       .Name("luthier_db_backup_last_success_timestamp_seconds")
                       .Help("When the newest backup since the start was complete")
                       .Register(registry)) {
  auto& jobs = BuildGauge().Name("luthier_jobs").Help("Jobs by state").Register(registry);
  auto& transitions =
      BuildCounter().Name("luthier_job_transitions_total").Help("Changes of state by new state").Register(registry);
  for (const JobState state : kAllStates) {
    const std::string name = absl::AsciiStrToLower(StateName(state));
    jobs_[state] = &jobs.Add({{"state", name}});
    transitions_[state] = &transitions.Add({{"to", name}});
  }
  auto& agents = BuildGauge().Name("luthier_agents").Help("Nodes by state").Register(registry);
  for (const char* state : {"ready", "drained", "outdated", "disconnected", "lost", "quarantined"})
    agents_[state] = &agents.Add({{"state", state}});
  BuildGauge().Name("luthier_build_info").Help("Always 1").Register(registry).Add({{"version", version}}).Set(1);
}

void ServerMetrics::ObserveCall(absl::string_view method, absl::StatusCode code, absl::Duration duration) {
  const std::lock_guard lock(mutex_);
  auto found = methods_.find(method);
  if (found == methods_.end()) {
    auto& seconds = handling_seconds_.Add({{"method", std::string(method)}}, Latency());
    found = methods_.emplace(method, Method{seconds}).first;
  }
  prometheus::Counter*& handled = found->second.handled[code];
  if (handled == nullptr) {
    handled = &handled_.Add({{"method", std::string(method)}, {"code", absl::StatusCodeToString(code)}});
  }
  handled->Increment();
  found->second.seconds.Observe(absl::ToDoubleSeconds(duration));
  if (method == "CreateFineTuningJob") (code == absl::StatusCode::kOk ? accepted_ : refused_).Increment();
}

void ServerMetrics::ObserveBackup(absl::Time now) {
  last_backup_.Add({}).Set(absl::ToDoubleSeconds(now - absl::UnixEpoch()));
}

void ServerMetrics::ObserveCommit(absl::Duration duration, size_t batch) {
  commit_seconds_.Observe(absl::ToDoubleSeconds(duration));
  commit_batch_.Observe(static_cast<double>(batch));
}

void ServerMetrics::ObserveLog(int64_t bytes) { log_bytes_.Set(static_cast<double>(bytes)); }

void ServerMetrics::ObserveBatch(const State& state, const Writes& writes, absl::Time now) {
  std::map<int64_t, const Job*> changed;
  for (const Job& job : writes.jobs) changed[job.number] = &job;
  for (const Event& event : writes.events) {
    if (event.state != 0) ObserveTransition(*changed.at(event.job), event);
  }
  for (const auto& [name, jobs] : jobs_) jobs->Set(static_cast<double>(state.jobs().count(name)));
  queue_depth_.Set(static_cast<double>(state.jobs().waiting()));
  oldest_queued_.Set(state.jobs().waiting() == 0 ? 0 : absl::ToDoubleSeconds(now - state.jobs().OldestWaiting()));
  std::map<absl::string_view, int> agents;
  for (const auto& [id, node] : state.nodes()) ++agents[StateOf(node, now)];
  for (const auto& [name, gauge] : agents_) gauge->Set(agents[name]);
}

void ServerMetrics::ObserveTransition(const Job& job, const Event& event) {
  const auto to = static_cast<JobState>(event.state);
  transitions_.at(to)->Increment();
  if (to == JobState::kStarting) queue_wait_.Observe(absl::ToDoubleSeconds(event.time - job.waiting_since));
  const std::lock_guard lock(mutex_);
  if (to == JobState::kRunning) {
    // Of a later attempt the tokens done before are not known here; its first progress is then the start.
    if (job.attempt == 1) progress_.try_emplace(job.id);
  } else if (progress_.erase(job.id) > 0) {
    ShowTokenRate();
  }
}

void ServerMetrics::ObserveProgress(const std::string& job, double tokens_per_second, absl::Duration step,
                                    int64_t tokens) {
  step_seconds_.Observe(absl::ToDoubleSeconds(step));
  const std::lock_guard lock(mutex_);
  const auto [progress, first] = progress_.try_emplace(job, Progress{0, tokens});
  // A resumed attempt counts from its checkpoint: what it does again is work, but was counted.
  if (tokens > progress->second.tokens) tokens_.Increment(static_cast<double>(tokens - progress->second.tokens));
  progress->second = {tokens_per_second, tokens};
  ShowTokenRate();
}

void ServerMetrics::ShowTokenRate() {
  double sum = 0;
  for (const auto& [job, progress] : progress_) sum += progress.tokens_per_second;
  tokens_per_second_.Set(sum);
}

void ServerMetrics::ObserveGpus(const std::string& node, const std::vector<GpuMemory>& gpus) {
  for (const GpuMemory& gpu : gpus) {
    const prometheus::Labels labels = {{"node", node}, {"gpu", std::to_string(gpu.index)}};
    gpu_used_.Add(labels).Set(static_cast<double>(gpu.used_bytes));
    gpu_total_.Add(labels).Set(static_cast<double>(gpu.total_bytes));
  }
}

}  // namespace luthier
