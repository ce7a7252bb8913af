#include "bench/service/latencies.h"

#include <algorithm>

namespace luthier {

double Latencies::Percentile(double part) const {
  if (all_.empty()) return 0;
  std::vector<double> sorted = all_;
  const auto rank = sorted.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(sorted.size() - 1));
  std::nth_element(sorted.begin(), rank, sorted.end());
  return *rank;
}

}  // namespace luthier
