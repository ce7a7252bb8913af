// What is at the other end of an output: a person's terminal, or a file or program.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace luthier {

enum class Colour { kRed, kGreen, kYellow, kBlue, kFaint, kBold };

// One of the two outputs. Plain data, so that tests make any kind of terminal.
struct Terminal {
  bool interactive = false;  // a person looks at it: lines may be redrawn
  bool colours = false;
  int width = 0;   // columns; 0: no limit, because it is a file
  int height = 0;  // lines; 0: likewise
  int fd = -1;     // where to look at it again; below 0: nowhere

  // The same with the size that it has by now.
  Terminal AsItIsNow() const;
  // The text in a colour, or as it is.
  std::string Paint(Colour colour, absl::string_view text) const;
};

// Looks at the file descriptor, NO_COLOR, TERM and COLUMNS.
Terminal TerminalOf(int fd);

// Columns that UTF-8 text takes: wide characters two, combining ones none; our own colour sequences none.
int DisplayWidth(absl::string_view text);

// At most `width` columns of the text, the last one "…" if something was cut, which ends our own colours.
std::string Ellipsize(absl::string_view text, int width);

// The text in lines of at most `width` columns, broken at spaces; a word that is longer stays whole. 0: as it is.
std::string WrapText(absl::string_view text, int width);

// Line breaks and control characters of others' text as spaces, so that it cannot steer the terminal.
std::string OneLine(absl::string_view text);

}  // namespace luthier
