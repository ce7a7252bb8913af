#include "client/lib/retry.h"

#include <algorithm>

#include "absl/random/random.h"

namespace luthier {

absl::Duration RetryPause(const RetryPolicy& policy, int failures, double random) {
  constexpr int kMostDoublings = 20;  // beyond it every policy is at its longest pause
  const absl::Duration doubled = policy.initial_pause * (1 << std::clamp(failures - 1, 0, kMostDoublings));
  return std::min(doubled, policy.longest_pause) * (0.5 + random);
}

double RandomFraction() {
  thread_local absl::BitGen generator;
  return absl::Uniform(generator, 0.0, 1.0);
}

bool IsBrokenStream(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:  // a watcher that was too slow is cut and told to resume
    case grpc::StatusCode::INTERNAL:            // a reset in the middle of a message, as proxies send it
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::CANCELLED:  // by the server's end: ours is known to the caller
      return true;
    default: return false;
  }
}

}  // namespace luthier
