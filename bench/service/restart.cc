#include "absl/time/clock.h"
#include "bench/service/fill.h"
#include "bench/service/scenarios.h"

namespace luthier {

Json BenchRestart(const BenchOptions& options) {
  Installation installation(options);
  const int64_t empty = installation.server().ResidentBytes();
  FillQueue(installation, options.jobs);
  const absl::Time start = absl::Now();
  installation.Start();
  // Serving is answering, not having said so.
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  v1::ListFineTuningJobsRequest request;
  request.set_page_size(1);
  v1::ListFineTuningJobsResponse response;
  Require(
      v1::FineTuningService::NewStub(installation.server().channel())->ListFineTuningJobs(&context, request, &response),
      "ListFineTuningJobs");
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  Require(response.jobs_size() == 1, "the restarted server has no jobs");
  return {{"scenario", "restart"},
          {"jobs", options.jobs},
          {"restart_seconds", seconds},
          {"rss_bytes_per_job",
           static_cast<double>(installation.server().ResidentBytes() - empty) / static_cast<double>(options.jobs)},
          {"lost_acks", 0}};
}

}  // namespace luthier
