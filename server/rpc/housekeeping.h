// Removes what nobody needs any more, on a thread of its own: blobs of deleted datasets, artifacts of attempts that
// published nothing, the events of jobs whose retention has passed, and versions beyond those that are kept.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/time/time.h"
#include "lib/artifact/artifact_store.h"
#include "server/loop/state_loop.h"
#include "server/store/store.h"

namespace luthier {

// Errors: as State::DeleteVersion.
absl::Status RemoveVersion(StateLoop& loop, Store& store, const std::string& model, int version);

class Housekeeping {
 public:
  struct Options {
    absl::Duration interval = absl::Hours(1);
    // An agent that shares the store's folder writes blobs there before it tells the server of them.
    absl::Duration keep_unused = absl::Hours(1);
    absl::Duration retention = absl::InfiniteDuration();  // of the events of jobs without one of their own
    int keep_versions = 0;                                // newest versions of a model that stay; 0: all
  };
  // All must outlive it. Begins with a round.
  Housekeeping(StateLoop& loop, Store& store, ArtifactStore& artifacts, Options options);
  ~Housekeeping();

  // Something was deleted: another round, now and again once what is unused now has become old enough.
  void Soon();

  // One round of each.
  absl::StatusOr<Garbage> Collect();
  absl::Status ExpireEvents(absl::Time now);
  // Removes all but the `keep` newest versions of each model (0: none), and those that an alias points to or a job goes
  // on from.
  absl::Status ExpireVersions(int keep);
  // Nothing is removed while it is held.
  std::unique_lock<std::mutex> Pause() { return std::unique_lock(collecting_); }

 private:
  void Work();
  absl::StatusOr<ArtifactStore::References> References();

  StateLoop& loop_;
  Store& store_;
  ArtifactStore& artifacts_;
  const Options options_;
  std::mutex collecting_;  // one round at a time
  std::mutex mutex_;       // of what follows
  std::condition_variable work_;
  bool soon_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
