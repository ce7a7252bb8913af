// Growing pauses between tries, with jitter so that a thousand agents do not come back in the same moment. One thread.
#pragma once

#include <algorithm>
#include <random>

#include "absl/time/time.h"

namespace luthier {

class Backoff {
 public:
  Backoff(absl::Duration first, absl::Duration longest) : first_(first), longest_(longest), next_(first) {}

  // The pause before the next try: between half and the whole of a time that doubles.
  absl::Duration Next() {
    const absl::Duration pause = next_ * std::uniform_real_distribution(0.5, 1.0)(random_);
    next_ = std::min(next_ * 2, longest_);
    return pause;
  }
  void Reset() { next_ = first_; }

 private:
  absl::Duration first_, longest_, next_;
  std::minstd_rand random_{std::random_device()()};
};

}  // namespace luthier
