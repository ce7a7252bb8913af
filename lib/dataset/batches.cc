#include "lib/dataset/batches.h"

#include <algorithm>
#include <cmath>
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
  const int64_t all = std::accumulate(order.begin(), order.end(), int64_t{0},
                                      [&](int64_t sum, int32_t row) { return sum + lengths[row]; });
  const double tokens_per_step = static_cast<double>(all) / static_cast<double>(steps);
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

// The rows of an epoch in the order of their files.
std::vector<int32_t> RowsInFileOrder(size_t rows, const BatchOptions& options, int64_t epoch) {
  std::vector<int32_t> order;
  if (options.mixture.empty()) {
    order.resize(rows);
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  int64_t first = 0;
  for (size_t file = 0; file < options.mixture.size(); ++file) {
    const int64_t n = options.mixture[file].rows;
    const int64_t wanted = RowsOfEpoch(n, options.mixture[file].weight);
    // The rows that come up once more are the next ones of a fixed shuffle, so that over epochs all of them do.
    const std::vector<int32_t> shuffle = Permutation(static_cast<int32_t>(n), ~(options.seed + file), /*epoch=*/0);
    std::vector<int64_t> times(static_cast<size_t>(n), n > 0 ? wanted / n : 0);
    const int64_t more = n > 0 ? wanted % n : 0;
    for (int64_t i = 0; i < more; ++i)
      ++times[static_cast<size_t>(shuffle[static_cast<size_t>((epoch * more + i) % n)])];
    for (int64_t row = 0; row < n; ++row)
      order.insert(order.end(), static_cast<size_t>(times[row]), static_cast<int32_t>(first + row));
    first += n;
  }
  return order;
}

// Tokens and rows of an epoch, the same in every one: of a mixture the tokens are those of a mean epoch.
std::pair<double, int64_t> SizeOfEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options) {
  if (options.mixture.empty()) return {static_cast<double>(Total(lengths)), static_cast<int64_t>(lengths.size())};
  double tokens = 0;
  int64_t rows = 0;
  size_t first = 0;
  for (const MixtureFile& file : options.mixture) {
    if (file.rows == 0) continue;
    const int64_t wanted = RowsOfEpoch(file.rows, file.weight);
    const auto of_file = static_cast<double>(Total(lengths.subspan(first, static_cast<size_t>(file.rows))));
    tokens += of_file * static_cast<double>(wanted) / static_cast<double>(file.rows);
    rows += wanted;
    first += static_cast<size_t>(file.rows);
  }
  return {tokens, rows};
}

// Puts rows of like length beside each other, in pools of some steps: sorted as a whole, every epoch would have the
// same steps. 50 steps are what transformers' `group_by_length` takes.
void GroupByLength(absl::Span<const int32_t> lengths, int64_t steps, std::vector<int32_t>& order) {
  const int64_t pools = std::max<int64_t>(1, steps / std::clamp<int64_t>(steps / 4, 1, 50));
  const auto rows = static_cast<int64_t>(order.size());
  for (int64_t pool = 0; pool < pools; ++pool) {
    std::stable_sort(order.begin() + rows * pool / pools, order.begin() + rows * (pool + 1) / pools,
                     [&](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
  }
}

}  // namespace

int64_t RowsOfEpoch(int64_t rows, double weight) {
  return rows == 0 ? 0 : std::max<int64_t>(1, std::llround(weight * static_cast<double>(rows)));
}

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
  const auto [tokens, rows] = SizeOfEpoch(lengths, options);
  if (rows == 0) return 0;
  const int64_t batch = std::max<int64_t>(options.batch_tokens, 1);
  return std::clamp<int64_t>((std::llround(tokens) + batch / 2) / batch, 1, rows);
}

std::vector<Step> PlanEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options, int64_t epoch) {
  const int64_t steps = StepsPerEpoch(lengths, options);
  if (steps == 0) return {};
  std::vector<int32_t> order = RowsInFileOrder(lengths.size(), options, epoch);
  if (options.order != BatchOptions::Order::kFile) {
    std::vector<int32_t> shuffled = Permutation(static_cast<int32_t>(order.size()), options.seed, epoch);
    for (int32_t& row : shuffled) row = order[static_cast<size_t>(row)];
    order = std::move(shuffled);
  }
  if (options.order == BatchOptions::Order::kGrouped) GroupByLength(lengths, steps, order);
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
  if (options.order != BatchOptions::Order::kGrouped) return plan;
  // Long and short steps in turns by chance, not by size.
  std::vector<Step> mixed;
  for (const int32_t step : Permutation(static_cast<int32_t>(steps), ~options.seed, epoch)) {
    mixed.push_back(std::move(plan[static_cast<size_t>(step)]));
  }
  return mixed;
}

}  // namespace luthier
