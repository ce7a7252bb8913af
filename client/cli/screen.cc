#include "client/cli/screen.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace luthier {

void Screen::Resize(const Terminal& terminal) {
  if (terminal.width == terminal_.width && terminal.height == terminal_.height) return;
  terminal_ = terminal;
  resized_ = true;
}

void Screen::Draw(const std::string& text) {
  if (text == shown_ && lines_ > 0 && !resized_) return;
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.back().empty()) lines.pop_back();
  // The cursor stands below the last line, so that one has to stay free.
  if (const auto most = static_cast<size_t>(terminal_.height - 1); terminal_.height > 2 && lines.size() > most) {
    const size_t left_out = lines.size() - most + 1;
    lines.resize(most - 1);
    lines.push_back(absl::StrCat("… and ", left_out, " more"));
  }
  std::string drawing = lines_ == 0 ? "" : resized_ ? "\x1b[H" : absl::StrCat("\x1b[", lines_, "A");
  absl::StrAppend(&drawing, "\x1b[?7l");  // a line that is too long must not become two
  for (const std::string& line : lines) {
    const std::string shown = terminal_.width == 0 ? line : Ellipsize(line, terminal_.width);  // 0: no limit
    absl::StrAppend(&drawing, shown, "\x1b[K\n");
  }
  out_ << drawing << "\x1b[?7h\x1b[J" << std::flush;
  shown_ = text;
  resized_ = false;
  lines_ = static_cast<int>(lines.size());
}

}  // namespace luthier
