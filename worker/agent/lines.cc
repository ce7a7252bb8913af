#include "worker/agent/lines.h"

#include <algorithm>
#include <utility>

namespace luthier {

void LineSplitter::Add(absl::string_view bytes, const OnLine& on_line) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const absl::string_view piece = bytes.substr(0, newline);
    const size_t kept = std::min(piece.size(), max_bytes_ - line_.size());
    line_.append(piece.data(), kept);
    cut_ |= kept < piece.size();
    if (newline == absl::string_view::npos) return;
    on_line(std::exchange(line_, {}), std::exchange(cut_, false));
    bytes.remove_prefix(newline + 1);
  }
}

void LineSplitter::Finish(const OnLine& on_line) {
  if (!line_.empty() || cut_) on_line(std::exchange(line_, {}), std::exchange(cut_, false));
}

}  // namespace luthier
