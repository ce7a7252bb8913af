// What the server measures, under the names of the dashboards. Every metric is made here; cardinality is bounded by the
// API's methods, the states and the GPUs of the installation, never by the number of jobs.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/core/state.h"

namespace luthier {

// One GPU as its agent last reported it.
struct GpuMemory {
  int index = 0;
  int64_t used_bytes = 0;
  int64_t total_bytes = 0;
};

// Methods may be called from any thread.
class ServerMetrics {
 public:
  // `registry` must outlive the metrics.
  ServerMetrics(prometheus::Registry& registry, const std::string& version);

  // `method` must outlive the metrics.
  void ObserveCall(absl::string_view method, absl::StatusCode code, absl::Duration duration);
  void ObserveCommit(absl::Duration duration, size_t batch);
  // How much the database's log holds.
  void ObserveLog(int64_t bytes);
  // After a batch, with what it wrote. Loop thread only.
  void ObserveBatch(const State& state, const Writes& writes, absl::Time now);
  // A `progress` event of a job's current attempt; `tokens` counts from the start of the job.
  void ObserveProgress(const std::string& job, double tokens_per_second, absl::Duration step, int64_t tokens);
  void ObserveGpus(const std::string& node, const std::vector<GpuMemory>& gpus);
  void ObserveBackup(absl::Time now);

 private:
  struct Progress {
    double tokens_per_second = 0;
    int64_t tokens = 0;
  };
  // What one method counts. The library makes a metric anew for each look at its name, so they are looked up once.
  struct Method {
    prometheus::Histogram& seconds;
    std::map<absl::StatusCode, prometheus::Counter*> handled = {};
  };
  void ObserveTransition(const Job& job, const Event& event);
  void ShowTokenRate();

  std::map<JobState, prometheus::Gauge*> jobs_;
  prometheus::Gauge& queue_depth_;
  prometheus::Gauge& oldest_queued_;
  std::map<absl::string_view, prometheus::Gauge*> agents_;  // by state, in literals
  prometheus::Family<prometheus::Counter>& submissions_;
  prometheus::Counter& accepted_;
  prometheus::Counter& refused_;
  std::map<JobState, prometheus::Counter*> transitions_;
  prometheus::Histogram& queue_wait_;
  prometheus::Family<prometheus::Counter>& handled_;
  prometheus::Family<prometheus::Histogram>& handling_seconds_;
  prometheus::Histogram& commit_seconds_;
  prometheus::Histogram& commit_batch_;
  prometheus::Gauge& log_bytes_;
  prometheus::Gauge& tokens_per_second_;
  prometheus::Counter& tokens_;
  prometheus::Histogram& step_seconds_;
  prometheus::Family<prometheus::Gauge>& gpu_used_;
  prometheus::Family<prometheus::Gauge>& gpu_total_;
  prometheus::Family<prometheus::Gauge>& last_backup_;

  std::mutex mutex_;                          // of what follows
  std::map<std::string, Progress> progress_;  // of running attempts, by job
  absl::flat_hash_map<absl::string_view, Method> methods_;
};

}  // namespace luthier
