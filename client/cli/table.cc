#include "client/cli/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace luthier {
namespace {

constexpr int kGap = 2;
constexpr int kNarrowest = 8;  // columns below this say nothing any more

std::string Pad(const std::string& text, int width, bool right, bool last) {
  const int missing = std::max(0, width - DisplayWidth(text));
  const std::string spaces(static_cast<size_t>(missing), ' ');
  if (right) return spaces + text;
  return last ? text : text + spaces;  // no blanks at the end of a line
}

}  // namespace

void Table::AddRow(std::vector<Cell> cells) {
  for (Cell& cell : cells) cell.text = OneLine(cell.text);
  rows_.push_back(std::move(cells));
}

std::vector<int> Table::Widths(int limit) const {
  std::vector<int> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    int width = DisplayWidth(columns_[i].heading);
    for (const std::vector<Cell>& row : rows_) width = std::max(width, DisplayWidth(row[i].text));
    widths.push_back(width);
  }
  if (limit == 0) return widths;
  int total = kGap * (static_cast<int>(widths.size()) - 1);
  for (const int width : widths) total += width;
  while (total > limit) {
    size_t widest = widths.size();
    for (size_t i = 0; i < widths.size(); ++i) {
      const bool can = columns_[i].may_shrink && widths[i] > std::max(kNarrowest, DisplayWidth(columns_[i].heading));
      if (can && (widest == widths.size() || widths[i] > widths[widest])) widest = i;
    }
    if (widest == widths.size()) break;
    --widths[widest];
    --total;
  }
  return widths;
}

std::vector<std::string> Table::Lines(const Terminal& terminal) const {
  const std::vector<int> widths = Widths(terminal.width);
  std::vector<std::string> lines(1 + rows_.size());
  const auto add = [&](std::string& line, size_t i, const std::string& text, std::optional<Colour> colour) {
    const bool last = i + 1 == columns_.size();
    const std::string padded = Pad(Ellipsize(text, widths[i]), widths[i], columns_[i].right, last);
    absl::StrAppend(&line, colour ? terminal.Paint(*colour, padded) : padded, last ? "\n" : std::string(kGap, ' '));
  };
  for (size_t i = 0; i < columns_.size(); ++i) {
    add(lines[0], i, columns_[i].heading, Colour::kFaint);
    for (size_t row = 0; row < rows_.size(); ++row) add(lines[row + 1], i, rows_[row][i].text, rows_[row][i].colour);
  }
  return lines;
}

std::string Table::Render(const Terminal& terminal) const { return absl::StrJoin(Lines(terminal), ""); }

std::string Table::Content(size_t row) const {
  std::string content;
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (!columns_[i].clock) absl::StrAppend(&content, rows_[row][i].text, "\n");
  }
  return content;
}

}  // namespace luthier
