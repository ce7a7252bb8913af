#include "lib/dataset/repeated_lines.h"

#include <functional>

namespace luthier {

std::optional<int64_t> RepeatedLines::Find(std::string_view line, int64_t number) {
  const uint64_t hash = std::hash<std::string_view>()(line);
  if (const auto found = first_.find(hash); found != first_.end()) return found->second;
  if (first_.size() < max_lines_) {
    first_.emplace(hash, number);
  } else {
    complete_ = false;
  }
  return std::nullopt;
}

}  // namespace luthier
