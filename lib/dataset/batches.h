// Which rows a step trains on: a pure function of lengths, options and epoch, so a resumed job goes
// on with the same data.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace luthier {

// Rows, by index, that are packed behind one another into one forward pass. Attention stays inside
// each row.
using MicroBatch = std::vector<int32_t>;
// The micro-batches whose gradients one optimizer step sums.
using Step = std::vector<MicroBatch>;

// One file of a mixture. Its rows come up `weight` times an epoch on average: each of them as often as a whole number
// goes into that, and once more a part of them that moves on through the file from epoch to epoch.
struct MixtureFile {
  int64_t rows = 0;
  double weight = 1;
};

struct BatchOptions {
  enum class Order {
    kShuffled,  // anew for each epoch
    kGrouped,   // shuffled, with rows of like length in one step
    kFile       // as in the file, in every epoch
  };
  int64_t batch_tokens = 2048;        // that a step aims at
  int64_t micro_batch_tokens = 2048;  // that a micro-batch never exceeds, unless one row alone does
  uint64_t seed = 1;
  int64_t ranks = 1;  // that share a step: each takes every ranks-th of its micro-batches
  Order order = Order::kShuffled;
  // A mixture: the rows of each of its files, which lie one behind the other; empty: every row once an epoch.
  std::vector<MixtureFile> mixture;
};

// Rows that an epoch takes of a file of a mixture; at least one, if it has any.
int64_t RowsOfEpoch(int64_t rows, double weight);

// Steps of one epoch: total tokens / batch_tokens, rounded, at least 1 and at most one for each
// row. The same for every epoch, so a job has epochs × StepsPerEpoch steps. 0 without rows.
int64_t StepsPerEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options);

// Every row exactly once (or as often as the mixture says), divided into StepsPerEpoch steps of nearly equal tokens,
// each packed into micro-batches. Which rows a step has does not depend on micro_batch_tokens and ranks.
std::vector<Step> PlanEpoch(absl::Span<const int32_t> lengths, const BatchOptions& options, int64_t epoch);

// Best-fit decreasing: indices of `lengths` in bins of at most `capacity`; a longer row has a bin
// of its own. Ties keep the order of the input, so the result is the same everywhere.
std::vector<MicroBatch> PackBestFit(absl::Span<const int32_t> lengths, int64_t capacity);

// As few bins as PackBestFit needs, rounded up to a multiple of `ranks` while there are rows for them, filled as evenly
// as their capacity allows: a bin of a few tokens costs more time than its tokens are worth.
std::vector<MicroBatch> PackEvenly(absl::Span<const int32_t> lengths, int64_t capacity, int64_t ranks = 1);

// A permutation of 0..n-1 from SplitMix64 and Fisher-Yates: the same on every platform and for
// ever, since resumed jobs depend on it.
std::vector<int32_t> Permutation(int32_t n, uint64_t seed, int64_t epoch);

}  // namespace luthier
