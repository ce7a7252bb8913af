// When a call that failed is tried again, and after which pause.
#pragma once

#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace luthier {

struct RetryPolicy {
  // About 2 s in all with the pauses below: a restarting server is back by then, and a person whose server is not
  // running does not wait longer for being told so.
  int attempts = 4;
  absl::Duration initial_pause = absl::Milliseconds(250);
  absl::Duration longest_pause = absl::Seconds(5);
};

// The pause after the `failures`-th failure in a row (from 1): doubled each time, times 0.5 to 1.5 so that many clients
// of a restarting server do not come back at once. `random` is in [0, 1).
absl::Duration RetryPause(const RetryPolicy& policy, int failures, double random);

// A random number in [0, 1) for RetryPause.
double RandomFraction();

// A stream that ended like this was broken on the way, by a restart or by the network; a cursor makes it whole again.
bool IsBrokenStream(const grpc::Status& status);

}  // namespace luthier
