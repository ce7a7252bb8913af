#include "worker/agent/agent_metrics.h"

#include "absl/strings/ascii.h"

namespace luthier {
namespace {

using nlohmann::json;
using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

prometheus::Gauge& OneGauge(prometheus::Registry& registry, const char* name, const char* help) {
  return BuildGauge().Name(name).Help(help).Register(registry).Add({});
}
prometheus::Counter& OneCounter(prometheus::Registry& registry, const char* name, const char* help) {
  return BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

double Number(const json& event, const char* field) {
  return event.contains(field) && event[field].is_number() ? event[field].get<double>() : 0.0;
}

}  // namespace

AgentMetrics::AgentMetrics(prometheus::Registry& registry, const std::string& version)
    : connected_(OneGauge(registry, "luthier_agent_connected", "1 while the agent has a session with the server")),
      attempts_running_(OneGauge(registry, "luthier_attempts_running", "Trainers that run on this node")),
      attempts_(
          BuildCounter().Name("luthier_attempts_total").Help("Attempts that ended, by outcome").Register(registry)),
      tokens_(OneCounter(registry, "luthier_train_tokens_total", "Tokens trained on this node")),
      tokens_per_second_(OneGauge(registry, "luthier_train_tokens_per_second", "Sum over the running trainers")),
      step_seconds_(BuildHistogram()
                        .Name("luthier_train_step_seconds")
                        .Help("Duration of an optimizer step, mean of the last steps, at each progress event")
                        .Register(registry)
                        .Add({}, Buckets{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60})),
      checkpoint_seconds_(
          BuildHistogram()
              .Name("luthier_checkpoint_seconds")
              .Help("Duration of a checkpoint")
              .Register(registry)
              .Add({{"op", "save"}}, Buckets{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60})),
      checkpoint_bytes_(OneCounter(registry, "luthier_checkpoint_bytes_total", "Bytes of checkpoints written")),
      backlog_(OneGauge(registry, "luthier_journal_backlog_reports", "Reports that the server has not acknowledged")),
      cache_bytes_(OneGauge(registry, "luthier_input_cache_bytes", "Bytes of inputs kept on this node")),
      fetched_bytes_(
          OneCounter(registry, "luthier_input_fetched_bytes_total", "Bytes of inputs fetched from the server")),
      uploaded_bytes_(OneCounter(registry, "luthier_artifact_uploaded_bytes_total", "Bytes of artifacts stored")),
      gpu_memory_(BuildGauge().Name("luthier_gpu_memory_total_bytes").Help("Memory of a GPU").Register(registry)),
      gpu_memory_used_(BuildGauge()
                           .Name("luthier_gpu_memory_used_bytes")
                           .Help("Memory of a GPU in use, by anybody")
                           .Register(registry)) {
  for (int outcome = v1::AttemptEnded::Outcome_MIN; outcome <= v1::AttemptEnded::Outcome_MAX; ++outcome) {
    if (outcome != v1::AttemptEnded::OUTCOME_UNSPECIFIED) Attempts(static_cast<v1::AttemptEnded::Outcome>(outcome));
  }
  BuildGauge().Name("luthier_build_info").Help("Always 1").Register(registry).Add({{"version", version}}).Set(1);
}

void AgentMetrics::ObserveConnected(bool connected) { connected_.Set(connected ? 1 : 0); }

void AgentMetrics::ObserveInventory(const v1::Inventory& inventory) {
  for (const v1::Gpu& gpu : inventory.gpus()) {
    const prometheus::Labels labels = {{"gpu", std::to_string(gpu.index())}};
    gpu_memory_.Add(labels).Set(static_cast<double>(gpu.memory_bytes()));
    gpu_memory_used_.Add(labels).Set(static_cast<double>(gpu.memory_used_bytes()));
  }
}

void AgentMetrics::ObserveBacklog(int64_t reports) { backlog_.Set(static_cast<double>(reports)); }
void AgentMetrics::ObserveCache(int64_t bytes) { cache_bytes_.Set(static_cast<double>(bytes)); }
void AgentMetrics::ObserveFetched(int64_t bytes) { fetched_bytes_.Increment(static_cast<double>(bytes)); }
void AgentMetrics::ObserveUploaded(int64_t bytes) { uploaded_bytes_.Increment(static_cast<double>(bytes)); }

void AgentMetrics::ObserveEnd(v1::AttemptEnded::Outcome outcome) { Attempts(outcome).Increment(); }

prometheus::Counter& AgentMetrics::Attempts(v1::AttemptEnded::Outcome outcome) {
  return attempts_.Add({{"outcome", absl::AsciiStrToLower(v1::AttemptEnded::Outcome_Name(outcome))}});
}

AgentMetrics::Training::Training(AgentMetrics& metrics) : metrics_(metrics) { metrics_.attempts_running_.Increment(); }

AgentMetrics::Training::~Training() {
  SetSpeed(0);
  metrics_.attempts_running_.Decrement();
}

void AgentMetrics::Training::SetSpeed(double tokens_per_second) {
  metrics_.tokens_per_second_.Increment(tokens_per_second - tokens_per_second_);
  tokens_per_second_ = tokens_per_second;
}

void AgentMetrics::Training::Observe(const json& event) {
  const std::string type = event.value("event", "");
  if (type == "progress") {
    const double tokens = Number(event, "tokens");
    // The first progress of a resumed run counts from its checkpoint; what lies before was counted then.
    if (tokens_ >= 0 && tokens > tokens_) metrics_.tokens_.Increment(tokens - tokens_);
    tokens_ = tokens;
    SetSpeed(Number(event, "tokens_per_second"));
    metrics_.step_seconds_.Observe(Number(event, "step_seconds"));
  } else if (type == "checkpoint") {
    metrics_.checkpoint_bytes_.Increment(Number(event, "bytes"));
    metrics_.checkpoint_seconds_.Observe(Number(event, "seconds"));
  }
}

}  // namespace luthier
