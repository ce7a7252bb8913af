// Which lines of a file repeat an earlier one, in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/container/flat_hash_map.h"

namespace luthier {

// Keeps a hash of 64 bits of each line: a wrong hit among a million lines has a chance of 1 in 10^7.
class RepeatedLines {
 public:
  // What Abseil's table holds in 36 MB, before it would double.
  static constexpr size_t kMaxLines = (size_t{1} << 21) / 8 * 7;
  explicit RepeatedLines(size_t max_lines = kMaxLines) : max_lines_(max_lines) {}

  // The number of the first line that is equal, if it is among those that are kept.
  std::optional<int64_t> Find(std::string_view line, int64_t number);
  // Whether all lines were kept, so that no repetition was missed.
  bool complete() const { return complete_; }

 private:
  const size_t max_lines_;
  absl::flat_hash_map<uint64_t, int64_t> first_;  // number of the first line, by hash
  bool complete_ = true;
};

}  // namespace luthier
