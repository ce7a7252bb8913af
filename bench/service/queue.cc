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
constexpr absl::Duration kTurn = absl::Seconds(1);

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

// In turn, so that a host which gives its guest more or less of a core meets both alike.
Json BenchQueue(const BenchOptions& options) {
  BenchOptions of_short = options;
  of_short.folder += "/short";
  Installation long_queue(options), short_queue(of_short);
  FillQueue(long_queue, options.jobs);
  FillQueue(short_queue, kShortQueue);
  Submitted to_long, to_short;
  for (auto* const installation : {&long_queue, &short_queue}) {
    installation->Start();
    SubmitForAWhile(*installation, options.callers, absl::Seconds(1));
  }
  for (absl::Duration left = options.time; left > absl::ZeroDuration(); left -= kTurn) {
    const absl::Duration turn = std::min(left, kTurn);
    to_long.Add(SubmitForAWhile(long_queue, options.callers, turn));
    to_short.Add(SubmitForAWhile(short_queue, options.callers, turn));
  }
  long_queue.Kill();
  short_queue.Kill();
  return {{"scenario", "queue"},
          {"callers", options.callers},
          {"seconds", to_long.seconds},
          {"jobs", options.jobs},
          {"requests_per_s", to_long.PerSecond()},
          {"requests_per_s_at_1k", to_short.PerSecond()},
          {"share_of_1k", to_long.PerSecond() / to_short.PerSecond()},
          {"p50_ms", to_long.latencies.Percentile(0.5)},
          {"p99_ms", to_long.latencies.Percentile(0.99)},
          {"lost_acks", CountLost(long_queue.data_dir(), to_long.ids)}};
}

}  // namespace luthier
