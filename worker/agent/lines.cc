#include "worker/agent/lines.h"

#include <algorithm>
#include <utility>

#include "absl/strings/strip.h"
#include "lib/base/utf8.h"

namespace luthier {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool IsControl(absl::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return (first < 0x20 && first != '\t') || first == 0x7F;
  return first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;  // U+0080 to U+009F
}

}  // namespace

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

std::string Sanitize(absl::string_view line) {
  line = absl::StripSuffix(line, "\r");
  std::string clean;
  clean.reserve(line.size());
  while (!line.empty()) {
    const size_t size = CharacterBytes({line.data(), line.size()});
    const absl::string_view character = line.substr(0, std::max<size_t>(size, 1));
    const absl::string_view kept = size == 0 || IsControl(character) ? kReplacement : character;
    clean.append(kept.data(), kept.size());
    line.remove_prefix(character.size());
  }
  return clean;
}

}  // namespace luthier
