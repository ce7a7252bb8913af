#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/service/agents.h"
#include "bench/service/installation.h"
#include "bench/service/scenarios.h"

namespace luthier {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(5);

}  // namespace

Json BenchHeartbeats(const BenchOptions& options) {
  Installation installation(options);
  const int64_t resident = installation.server().ResidentBytes();
  const auto agents = StartAgents([&] { return installation.Connect(); }, options.agents,
                                  [](SimulatedAgent&, const v1::SessionResponse&) {});
  v1::SessionRequest heartbeat;
  heartbeat.mutable_heartbeat()->mutable_inventory()->set_cpus(1);
  const double cpu_before = installation.server().CpuSeconds();
  const absl::Time start = absl::Now();
  const absl::Duration time = std::max(options.time, 2 * kInterval);
  // Evenly through the interval, as jitter spreads them.
  int64_t sent = 0;
  for (absl::Time now = start; now < start + time; now = absl::Now()) {
    const auto due =
        static_cast<int64_t>(absl::FDivDuration(now - start, kInterval) * static_cast<double>(agents.size()));
    for (; sent < due; ++sent) agents[static_cast<size_t>(sent) % agents.size()]->Send(heartbeat);
    absl::SleepFor(absl::Milliseconds(5));
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const double share = (installation.server().CpuSeconds() - cpu_before) / seconds;
  const int64_t grown = installation.server().ResidentBytes() - resident;
  const std::string metrics = installation.server().Metrics();
  Require(metrics.find(absl::StrCat("luthier_agents{state=\"ready\"} ", options.agents)) != std::string::npos,
          "not every agent is ready at the end");
  for (const auto& agent : agents) agent->Close();
  return {{"scenario", "heartbeats"},
          {"callers", options.agents},
          {"agents", options.agents},
          {"seconds", seconds},
          {"requests_per_s", static_cast<double>(sent) / seconds},
          {"core_share", share},
          {"rss_bytes_per_agent", static_cast<double>(grown) / options.agents}};
}

}  // namespace luthier
