#include "lib/base/did_you_mean.h"

#include <algorithm>
#include <utility>

namespace luthier {
namespace {

// Levenshtein distance.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substituted}));
    }
  }
  return row[b.size()];
}

}  // namespace

std::string DidYouMean(absl::string_view name, const std::vector<std::string>& known) {
  constexpr size_t kLongestName = 64;  // bounds the work for a hostile name
  if (name.size() > kLongestName) return "";
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(name, candidate);
    // Of a name that is changed to more than a half nothing is left; rounded up, since letters that changed places
    // count twice: `jbo` is `job`.
    const size_t most = (std::max(name.size(), candidate.size()) + 1) / 2;
    if (distance < best_distance && distance <= most) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace luthier
