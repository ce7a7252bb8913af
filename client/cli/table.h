// Rows under headings, made to fit the terminal.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/cli/terminal.h"

namespace luthier {

// A column: numbers stand right, and text that may be cut says so.
struct Column {
  std::string heading;
  bool right = false;
  bool may_shrink = false;
  bool clock = false;  // its values change as time passes, without anything having happened
};

struct Cell {
  Cell(std::string value) : text(std::move(value)) {}  // NOLINT: a cell is its text
  Cell(const char* value) : text(value) {}             // NOLINT
  Cell(std::string value, std::optional<Colour> paint) : text(std::move(value)), colour(paint) {}
  std::string text;
  std::optional<Colour> colour;
};

class Table {
 public:
  Table() = default;
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  // As many cells as there are columns.
  void AddRow(std::vector<Cell> cells);
  bool empty() const { return rows_.empty(); }
  // Lines that end with a newline. On a terminal the widest columns that may shrink do so until the lines fit; in a
  // file nothing is cut.
  std::string Render(const Terminal& terminal) const;
  // The same, one by one: headings, then rows.
  std::vector<std::string> Lines(const Terminal& terminal) const;
  // What a row says, without its clocks.
  std::string Content(size_t row) const;

 private:
  std::vector<int> Widths(int limit) const;

  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace luthier
