#include "absl/time/clock.h"
#include "bench/service/fill.h"
#include "bench/service/scenarios.h"

namespace luthier {

Json BenchRestart(const BenchOptions& options) {
  Installation installation(options);
  const int64_t empty = installation.server().ResidentBytes();
  const Submitted before = SubmitForAWhile(installation, options.callers, absl::Seconds(1));
  FillQueue(installation, options.jobs);  // ends the server as a power cut would
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
  const int64_t grown = installation.server().ResidentBytes() - empty;
  const int64_t jobs = options.jobs + static_cast<int64_t>(before.ids.size());
  installation.Kill();
  return {{"scenario", "restart"},
          {"callers", options.callers},
          {"jobs", jobs},
          {"restart_seconds", seconds},
          {"rss_bytes_per_job", static_cast<double>(grown) / static_cast<double>(jobs)},
          {"lost_acks", CountLost(installation.data_dir(), before.ids)}};
}

}  // namespace luthier
