// Durations of calls, and what is asked of them.
#pragma once

#include <vector>

#include "absl/time/time.h"

namespace luthier {

// One thread each; merged afterwards.
class Latencies {
 public:
  void Add(absl::Duration duration) { all_.push_back(absl::ToDoubleMilliseconds(duration)); }
  void Merge(const Latencies& other) { all_.insert(all_.end(), other.all_.begin(), other.all_.end()); }
  size_t count() const { return all_.size(); }
  // Milliseconds; 0 without calls. `part`: 0.5 is the median.
  double Percentile(double part) const;

 private:
  std::vector<double> all_;
};

}  // namespace luthier
