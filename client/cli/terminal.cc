#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdint>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/environment.h"

namespace luthier {
namespace {

constexpr char kNoColour[] = "\x1b[0m";

const char* Sequence(Colour colour) {
  switch (colour) {
    case Colour::kRed: return "\x1b[31m";
    case Colour::kGreen: return "\x1b[32m";
    case Colour::kYellow: return "\x1b[33m";
    case Colour::kBlue: return "\x1b[34m";
    case Colour::kFaint: return "\x1b[2m";
    case Colour::kBold: return "\x1b[1m";
  }
  return "";
}

// Decodes the character at the front and removes it; a byte that is not UTF-8 is U+FFFD.
uint32_t TakeCharacter(absl::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  const size_t length = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
  uint32_t character = length == 1 ? first : first & (0x7F >> length);
  bool valid = length > 0 && text.size() >= length;
  for (size_t i = 1; valid && i < length; ++i) {
    valid = byte(i) >> 6 == 2;
    character = character << 6 | (byte(i) & 0x3F);
  }
  text.remove_prefix(valid ? length : 1);
  return valid ? character : 0xFFFD;
}

// The sequence at the front that changes the colour, which it removes; empty if there is none.
absl::string_view TakeColour(absl::string_view& text) {
  if (text.empty() || text[0] != '\x1b') return "";
  const size_t end = text.find('m');
  const absl::string_view sequence = text.substr(0, end == absl::string_view::npos ? end : end + 1);
  text.remove_prefix(sequence.size());
  return sequence;
}

// The ranges of East Asian Width W and of zero width that text of users commonly holds.
int CharacterWidth(uint32_t c) {
  if ((c >= 0x300 && c <= 0x36F) || (c >= 0x200B && c <= 0x200F) || (c >= 0xFE00 && c <= 0xFE0F)) return 0;
  const bool wide = (c >= 0x1100 && c <= 0x115F) || (c >= 0x2E80 && c <= 0xA4CF) || (c >= 0xAC00 && c <= 0xD7A3) ||
                    (c >= 0xF900 && c <= 0xFAFF) || (c >= 0xFE30 && c <= 0xFE6F) || (c >= 0xFF00 && c <= 0xFF60) ||
                    (c >= 0x1F300 && c <= 0x1FAFF) || (c >= 0x20000 && c <= 0x3FFFD);
  return wide ? 2 : 1;
}

}  // namespace

std::string Terminal::Paint(Colour colour, absl::string_view text) const {
  if (!colours || text.empty()) return std::string(text);
  return absl::StrCat(Sequence(colour), text, kNoColour);
}

Terminal Terminal::AsItIsNow() const { return fd < 0 ? *this : TerminalOf(fd); }

Terminal TerminalOf(int fd) {
  Terminal terminal;
  if (!isatty(fd)) return terminal;
  terminal.fd = fd;
  const bool dumb = Environment("TERM") == "dumb";
  terminal.interactive = !dumb;
  terminal.colours = !dumb && Environment("NO_COLOR").empty();
  winsize size{};
  const bool known = ioctl(fd, TIOCGWINSZ, &size) == 0;
  terminal.width = known && size.ws_col > 0 ? size.ws_col : 80;
  terminal.height = known && size.ws_row > 0 ? size.ws_row : 24;
  int columns = 0;
  if (absl::SimpleAtoi(Environment("COLUMNS"), &columns) && columns > 0) terminal.width = columns;
  return terminal;
}

int DisplayWidth(absl::string_view text) {
  int width = 0;
  while (!text.empty()) {
    if (TakeColour(text).empty()) width += CharacterWidth(TakeCharacter(text));
  }
  return width;
}

std::string Ellipsize(absl::string_view text, int width) {
  if (DisplayWidth(text) <= width) return std::string(text);
  if (width <= 0) return "";
  std::string out;
  bool coloured = false;
  for (int used = 0; !text.empty();) {
    if (const absl::string_view colour = TakeColour(text); !colour.empty()) {
      absl::StrAppend(&out, colour);
      coloured = true;
      continue;
    }
    absl::string_view rest = text;
    used += CharacterWidth(TakeCharacter(rest));
    if (used > width - 1) break;
    absl::StrAppend(&out, text.substr(0, text.size() - rest.size()));
    text = rest;
  }
  return absl::StrCat(out, "…", coloured ? kNoColour : "");
}

std::string WrapText(absl::string_view text, int width) {
  if (width <= 0) return std::string(text);
  std::string out;
  bool first = true;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    absl::StrAppend(&out, first ? "" : "\n");
    first = false;
    int column = 0;
    for (absl::string_view word : absl::StrSplit(line, ' ')) {
      const int columns = DisplayWidth(word);
      const bool fits = column == 0 || column + 1 + columns <= width;
      absl::StrAppend(&out, column == 0 ? "" : fits ? " " : "\n", word);
      column = (fits && column > 0 ? column + 1 : 0) + columns;
    }
  }
  return out;
}

std::string OneLine(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    absl::string_view rest = text;
    const uint32_t c = TakeCharacter(rest);
    const bool control = c < 0x20 || (c >= 0x7F && c < 0xA0);
    absl::StrAppend(&out, control ? absl::string_view(" ") : text.substr(0, text.size() - rest.size()));
    text = rest;
  }
  return out;
}

}  // namespace luthier
