// What the agent measures, under the names of the dashboards. Every metric is made here; none carries a job.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/worker.pb.h"
#include "nlohmann/json.hpp"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace luthier {

// Methods may be called from any thread.
class AgentMetrics {
 public:
  // `registry` must outlive the metrics.
  AgentMetrics(prometheus::Registry& registry, const std::string& version);

  void ObserveConnected(bool connected);
  void ObserveInventory(const v1::Inventory& inventory);
  void ObserveBacklog(int64_t reports);
  void ObserveCache(int64_t bytes);
  void ObserveFetched(int64_t bytes);
  void ObserveUploaded(int64_t bytes);
  void ObserveEnd(v1::AttemptEnded::Outcome outcome);

  // What one trainer measures, from its events; takes its part out of the sums when it ends.
  class Training {
   public:
    explicit Training(AgentMetrics& metrics);
    ~Training();
    Training(const Training&) = delete;
    Training& operator=(const Training&) = delete;
    void Observe(const nlohmann::json& event);

   private:
    void SetSpeed(double tokens_per_second);
    AgentMetrics& metrics_;
    double tokens_ = -1;  // of the newest progress; -1 before the first
    double tokens_per_second_ = 0;
  };

 private:
  prometheus::Counter& Attempts(v1::AttemptEnded::Outcome outcome);

  prometheus::Gauge& connected_;
  prometheus::Gauge& attempts_running_;
  prometheus::Family<prometheus::Counter>& attempts_;
  prometheus::Counter& tokens_;
  prometheus::Gauge& tokens_per_second_;
  prometheus::Histogram& step_seconds_;
  prometheus::Histogram& checkpoint_seconds_;
  prometheus::Counter& checkpoint_bytes_;
  prometheus::Gauge& backlog_;
  prometheus::Gauge& cache_bytes_;
  prometheus::Counter& fetched_bytes_;
  prometheus::Counter& uploaded_bytes_;
  prometheus::Family<prometheus::Gauge>& gpu_memory_;
  prometheus::Family<prometheus::Gauge>& gpu_memory_used_;
};

}  // namespace luthier
