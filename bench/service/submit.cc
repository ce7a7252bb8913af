#include "bench/service/installation.h"
#include "bench/service/scenarios.h"

namespace luthier {

Json BenchSubmit(const BenchOptions& options) {
  Installation installation(options);
  SubmitForAWhile(installation, options.callers, absl::Seconds(1));  // connections, caches, the first checkpoint
  const Submitted submitted = SubmitForAWhile(installation, options.callers, options.time);
  const double cpu = installation.server().CpuSeconds();
  installation.Kill();
  return {{"scenario", "submit"},
          {"callers", options.callers},
          {"seconds", submitted.seconds},
          {"requests_per_s", submitted.PerSecond()},
          {"p50_ms", submitted.latencies.Percentile(0.5)},
          {"p99_ms", submitted.latencies.Percentile(0.99)},
          {"lost_acks", CountLost(installation.data_dir(), submitted.ids)},
          {"server_cpu_seconds", cpu}};
}

}  // namespace luthier
