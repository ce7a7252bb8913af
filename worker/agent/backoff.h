// Growing pauses between tries, with jitter so that a thousand agents do not come back in the same moment. One thread.
#pragma once

#include <algorithm>
#include <random>

#include "absl/time/time.h"

namespace luthier {

class Backoff {
 public:
  // A server restarts within seconds, and its lease for this node begins when it does; a thousand agents with jitter
  // spread over the longer pause.
  static constexpr absl::Duration kFirst = absl::Milliseconds(200), kLongest = absl::Seconds(5);

  // The pause before the next try: between half and the whole of a time that doubles.
  absl::Duration Next() {
    const absl::Duration pause = next_ * std::uniform_real_distribution(0.5, 1.0)(random_);
    next_ = std::min(next_ * 2, kLongest);
    return pause;
  }
  void Reset() { next_ = kFirst; }

 private:
  absl::Duration next_ = kFirst;
  std::minstd_rand random_{std::random_device()()};
};

}  // namespace luthier
