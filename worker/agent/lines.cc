#include "worker/agent/lines.h"

#include <algorithm>
#include <utility>

#include "absl/strings/strip.h"

namespace luthier {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Bytes of the well-formed UTF-8 character at the start of `text` (Unicode 15, table 3-7); 0 if there is none.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (first == 0xE0 && second < 0xA0) return 0;  // overlong
    if (first == 0xED && second > 0x9F) return 0;  // surrogate
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (first == 0xF0 && second < 0x90) return 0;
    if (first == 0xF4 && second > 0x8F) return 0;  // above U+10FFFF
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

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
    const size_t size = CharacterBytes(line);
    const absl::string_view character = line.substr(0, std::max<size_t>(size, 1));
    const absl::string_view kept = size == 0 || IsControl(character) ? kReplacement : character;
    clean.append(kept.data(), kept.size());
    line.remove_prefix(character.size());
  }
  return clean;
}

}  // namespace luthier
