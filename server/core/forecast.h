// When a waiting job is expected to start: the policy, played forward. Pure functions of a snapshot.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>

#include "absl/time/time.h"
#include "server/core/policy.h"

namespace luthier {

// A snapshot with jobs, nodes and speeds of its own, to be looked at while the state goes on.
struct DetachedSnapshot {
  Snapshot snapshot;
  std::deque<Job> jobs;
  std::deque<Node> nodes;
  Speeds speeds;
};
std::unique_ptr<DetachedSnapshot> Detach(Snapshot snapshot);

// When a waiting job is expected to start.
struct Forecast {
  int64_t ahead = 0;                               // jobs that are expected to start before it
  absl::Time start = absl::InfiniteFuture();       // half of such forecasts are early; InfiniteFuture: nobody can say
  absl::Time late_start = absl::InfiniteFuture();  // one in ten is later still
};
// Plays the policy forward with the expected durations. `number`: a job of the snapshot.
Forecast ForecastOf(int64_t number, const Snapshot& snapshot);

}  // namespace luthier
