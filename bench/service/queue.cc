#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/service/fill.h"
#include "bench/service/scenarios.h"
#include "server/loop/recorded_jobs.h"
#include "server/store/store.h"

namespace luthier {
namespace {

constexpr int64_t kShortQueue = 1000;
constexpr int64_t kBatch = 2000;

}  // namespace

void FillQueue(Installation& installation, int64_t jobs) {
  grpc::ClientContext context;
  v1::FineTuningJob created;
  Require(v1::FineTuningService::NewStub(installation.server().channel())
              ->CreateFineTuningJob(&context, installation.Request(), &created),
          "CreateFineTuningJob");
  installation.Kill();
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(installation.data_dir());
  Require(store.ok(), "the record cannot be opened");
  const absl::StatusOr<RecordedJob> example = (*store)->GetJob(created.name().substr(5));
  absl::StatusOr<State> state = (*store)->LoadState(absl::Now());
  Require(example.ok() && state.ok(), "the record cannot be read");
  for (int64_t done = 0; done < jobs;) {
    for (const int64_t end = std::min(jobs, done + kBatch); done < end; ++done) {
      Job job;
      job.id = absl::StrFormat("job-%011d", done);
      job.base_model = example->job.base_model;
      job.datasets = example->job.datasets;
      const JobRequest request{absl::StrFormat("%08x-0000-4000-8000-%012x", done * 2654435761 & 0xffffffff, done),
                               std::string(64, 'a')};
      Require(CreateJob(*state, **store, job, request, example->spec, absl::Now()).ok(), "a job could not be added");
    }
    Require((*store)->Commit(state->TakeWrites()).ok(), "jobs could not be written");
    state->Commit();
  }
}

Json BenchQueue(const BenchOptions& options) {
  const auto rate = [&](Installation& installation, Submitted& submitted) {
    SubmitForAWhile(installation, options.callers, absl::Seconds(1));
    submitted = SubmitForAWhile(installation, options.callers, options.time);
    return static_cast<double>(submitted.ids.size()) / submitted.seconds;
  };
  Installation installation(options);
  FillQueue(installation, kShortQueue);
  installation.Start();
  Submitted few, many;
  const double with_few = rate(installation, few);
  FillQueue(installation, options.jobs);
  installation.Start();
  const double with_many = rate(installation, many);
  installation.Kill();
  return {{"scenario", "queue"},
          {"callers", options.callers},
          {"seconds", many.seconds},
          {"jobs", options.jobs},
          {"requests_per_s", with_many},
          {"requests_per_s_at_1k", with_few},
          {"share_of_1k", with_many / with_few},
          {"p50_ms", many.latencies.Percentile(0.5)},
          {"p99_ms", many.latencies.Percentile(0.99)},
          {"lost_acks", CountLost(installation.data_dir(), many.ids)}};
}

}  // namespace luthier
