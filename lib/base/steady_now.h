// The clock for waiting: how long until, how long since. The wall clock may be set meanwhile.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace luthier {

// Never jumps, and stands still while the machine sleeps. Says nothing of the time of day.
inline absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace luthier
