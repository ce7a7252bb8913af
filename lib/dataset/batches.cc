#include "lib/dataset/batches.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

namespace luthier {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t state) : state_(state) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound): draws that would favour small results are thrown away.
  uint64_t Below(uint64_t bound) {
    const uint64_t unfair = -bound % bound;
    uint64_t draw = Next();
    while (draw < unfair) draw = Next();
    return draw % bound;
  }

 private:
  uint64_t state_;
};

int64_t Total(absl::Span<const int32_t> lengths) { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

// Cuts `order` into `steps` runs of nearly equal tokens, none of them empty.
std::vector<std::vector<int32_t>> CutIntoSteps(const std::vector<int32_t>& order, absl::Span<const int32_t> lengths,
                                               int64_t steps) {
  const double tokens_per_step = static_cast<double>(Total(lengths)) / static_cast<double>(steps);
  std::vector<std::vector<int32_t>> cut(steps);
  int64_t step = 0, tokens = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t rows_left = static_cast<int64_t>(order.size() - i);
    const double middle = static_cast<double>(tokens) + lengths[order[i]] / 2.0;
    const bool full = middle >= tokens_per_step * static_cast<double>(step + 1);
    const bool must_leave_rows = rows_left <= steps - 1 - step;
    if (step + 1 < steps && !cut[step].empty() && (full || must_leave_rows)) ++step;
    cut[step].push_back(order[i]);
    tokens += lengths[order[i]];
  }
  return cut;
}

}  // namespace

std::vector<int32_t> Permutation(int32_t n, uint64_t seed, int64_t epoch) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  // Seed and epoch are mixed, so that epoch 1 of seed 1 is not epoch 0 of seed 2.
  SplitMix64 random(SplitMix64(seed).Next() ^ SplitMix64(~static_cast<uint64_t>(epoch)).Next());
  for (int32_t i = n - 1; i > 0; --i) std::swap(order[i], order[random.Below(static_cast<uint64_t>(i) + 1)]);
  return order;
}

std::vector<MicroBatch> PackBestFit(absl::Span<const int32_t> lengths, int64_t capacity) {
  std::vector<int32_t> by_length(lengths.size());
  std::iota(by_length.begin(), by_length.end(), 0);
  std::stable_sort(by_length.begin(), by_length.end(), [&](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
  std::vector<MicroBatch> bins;
  std::set<std::pair<int64_t, size_t>> room;  // (free tokens, bin), of every bin
  for (const int32_t row : by_length) {
    const int64_t length = lengths[row];
    const auto fit = room.lower_bound({length, 0});
    if (fit == room.end()) {
      bins.push_back({row});
      if (capacity > length) room.insert({capacity - length, bins.size() - 1});
      continue;
    }
    const auto [free, bin] = *fit;
    room.erase(fit);
    bins[bin].push_back(row);
    if (free > length) room.insert({free - length, bin});
  }
  return bins;
}

std::vector<MicroBatch> PackEvenly(absl::Span<const int32_t> lengths, int64_t capacity, int64_t ranks) {
  std::vector<MicroBatch> tight = PackBestFit(lengths, capacity);
  // Longest first into the emptiest bin.
  const auto group = static_cast<size_t>(ranks);
  std::vector<MicroBatch> even(std::min((tight.size() + group - 1) / group * group, lengths.size()));
  std::set<std::pair<int64_t, size_t>> used;  // (tokens, bin)
  for (size_t bin = 0; bin < even.size(); ++bin) used.insert({0, bin});
  std::vector<int32_t> by_length(lengths.size());
  std::iota(by_length.begin(), by_length.end(), 0);
  std::stable_sort(by_length.begin(), by_length.end(), [&](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
  for (const int32_t row : by_length) {
    const auto [tokens, bin] = *used.begin();
    if (tokens > 0 && tokens + lengths[row] > capacity) return tight;
    used.erase(used.begin());
    even[bin].push_back(row);
    used.insert({tokens + lengths[row], bin});
  }
  return even;
}

int64_t StepsPerEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options) {
  const auto rows = static_cast<int64_t>(lengths.size());
  if (rows == 0) return 0;
  const int64_t batch = std::max<int64_t>(options.batch_tokens, 1);
  return std::clamp<int64_t>((Total(lengths) + batch / 2) / batch, 1, rows);
}

std::vector<Step> PlanEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options, int64_t epoch) {
  const int64_t steps = StepsPerEpoch(lengths, options);
  if (steps == 0) return {};
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  if (options.order == BatchOptions::Order::kShuffled) {
    order = Permutation(static_cast<int32_t>(lengths.size()), options.seed, epoch);
  }
  std::vector<Step> plan;
  for (const std::vector<int32_t>& rows : CutIntoSteps(order, lengths, steps)) {
    std::vector<int32_t> row_lengths;
    for (const int32_t row : rows) row_lengths.push_back(lengths[row]);
    Step step = PackEvenly(row_lengths, options.micro_batch_tokens, options.ranks);
    for (MicroBatch& micro_batch : step) {
      for (int32_t& index : micro_batch) index = rows[index];
    }
    plan.push_back(std::move(step));
  }
  return plan;
}

}  // namespace luthier
