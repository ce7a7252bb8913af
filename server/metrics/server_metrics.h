// What the server measures, under the names of the dashboards. Every metric is made here; cardinality is fixed.
#pragma once

#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/core/state.h"

namespace luthier {

// Methods may be called from any thread.
class ServerMetrics {
 public:
  // `registry` must outlive the metrics.
  explicit ServerMetrics(prometheus::Registry& registry, const std::string& version);

  void ObserveCall(absl::string_view method, int code, absl::Duration duration);
  void ObserveCommit(absl::Duration duration, size_t batch);
  // Loop thread only.
  void ObserveState(const State& state, absl::Time now);

 private:
  prometheus::Family<prometheus::Gauge>& jobs_;
  prometheus::Gauge& queue_depth_;
  prometheus::Gauge& oldest_queued_;
  prometheus::Family<prometheus::Gauge>& agents_;
  prometheus::Family<prometheus::Counter>& submissions_;
  prometheus::Family<prometheus::Counter>& handled_;
  prometheus::Family<prometheus::Histogram>& handling_seconds_;
  prometheus::Histogram& commit_seconds_;
  prometheus::Histogram& commit_batch_;
};

}  // namespace luthier
