#include "server/rpc/housekeeping.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "server/rpc/stored_files.h"

namespace luthier {
namespace {

constexpr int kJobsAtOnce = 8;

}  // namespace

Housekeeping::Housekeeping(StateLoop& loop, Store& store, ArtifactStore& artifacts, Options options)
    : loop_(loop), store_(store), artifacts_(artifacts), options_(options), thread_([this] { Work(); }) {}

Housekeeping::~Housekeeping() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

void Housekeeping::Soon() {
  const std::lock_guard lock(mutex_);
  soon_ = true;
  work_.notify_all();
}

void Housekeeping::Work() {
  std::unique_lock lock(mutex_);
  bool again = false;
  while (!stopping_) {
    soon_ = false;
    lock.unlock();
    const absl::StatusOr<Garbage> garbage = Collect();
    if (!garbage.ok()) {
      std::fprintf(stderr, "luthierd: unused files could not be removed: %s\n", garbage.status().ToString().c_str());
    } else if (garbage->blobs > 0) {
      std::fprintf(stderr, "luthierd: removed %lld unused files, %lld bytes\n", static_cast<long long>(garbage->blobs),
                   static_cast<long long>(garbage->bytes));
    }
    if (const absl::Status expired = ExpireEvents(absl::Now()); !expired.ok())
      std::fprintf(stderr, "luthierd: old events could not be removed: %s\n", expired.ToString().c_str());
    if (const absl::Status expired = ExpireVersions(options_.keep_versions); !expired.ok())
      std::fprintf(stderr, "luthierd: old versions could not be removed: %s\n", expired.ToString().c_str());
    lock.lock();
    const absl::Duration pause =
        again ? std::min(options_.interval, options_.keep_unused + absl::Seconds(1)) : options_.interval;
    work_.wait_for(lock, absl::ToChronoMilliseconds(pause), [this] { return soon_ || stopping_; });
    again = soon_;
  }
}

absl::StatusOr<Garbage> Housekeeping::Collect() {
  const std::lock_guard lock(collecting_);
  return artifacts_.CollectGarbage([this] { return References(); }, options_.keep_unused);
}

absl::Status Housekeeping::ExpireEvents(absl::Time now) {
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Job> jobs, store_.JobsToExpire(options_.retention, now, kJobsAtOnce));
    if (jobs.empty()) return absl::OkStatus();
    LUTHIER_RETURN_IF_ERROR(loop_.Run([&](State& state, absl::Time) {
      for (const Job& job : jobs) state.Expire(job);
      return absl::OkStatus();
    }));
    const std::lock_guard lock(mutex_);
    if (stopping_) return absl::OkStatus();
  }
}

absl::Status RemoveVersion(StateLoop& loop, Store& store, const std::string& model, int version) {
  return loop.Run([&](State& state, absl::Time) -> absl::Status {
    // Read here: an alias that was set meanwhile is on record, or among what this batch writes.
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Alias> aliases, store.Aliases(model));
    LUTHIER_ASSIGN_OR_RETURN(const int64_t bytes, store.VersionBytes(model, version));
    return state.DeleteVersion(model, version, aliases, bytes);
  });
}

absl::Status Housekeeping::ExpireVersions(int keep) {
  if (keep == 0) return absl::OkStatus();
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store_.Versions(""));
  std::map<std::string, int> kept;
  bool any = false;
  for (const ModelVersion& version : versions) {  // newest first
    if (++kept[version.model] <= keep) continue;
    const absl::Status removed = RemoveVersion(loop_, store_, version.model, version.version);
    if (!removed.ok() && !absl::IsFailedPrecondition(removed) && !absl::IsNotFound(removed)) return removed;
    any |= removed.ok();
  }
  if (any) Soon();
  return absl::OkStatus();
}

absl::StatusOr<ArtifactStore::References> Housekeeping::References() {
  std::set<std::pair<std::string, int>> running;
  // Attempts first: one that publishes in between is found among the versions.
  LUTHIER_RETURN_IF_ERROR(loop_.Run([&](State& state, absl::Time) {
    state.jobs().ForEach([&](const Job& job) {
      if (HoldsDevices(job.state)) running.emplace(job.id, job.attempt);
    });
    return absl::OkStatus();
  }));
  LUTHIER_ASSIGN_OR_RETURN(ArtifactStore::References used, ReferencesOf(store_));
  used.attempts.merge(running);
  return used;
}

}  // namespace luthier
