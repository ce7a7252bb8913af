// Rows of a file of JSON lines or Parquet, read one at a time with bounded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/dataset/text_source.h"
#include "lib/text/json.h"

namespace luthier {

// {"messages": [{"role": …, "content": …}, …], "tools": […]}. `arguments` of tool calls that are a
// string of JSON, as OpenAI writes them, are objects here, and so are `tools`, which columns of a table
// have no other form for if each has parameters of its own. An assistant message with "weight": 0 is
// context only.
struct ChatRow {
  OrderedJson messages;
  OrderedJson tools;      // null if absent
  OrderedJson variables;  // `chat_template_kwargs` of the row; null if absent
};
// {"prompt": "…", "completion": "…"}: plain text, no template.
struct CompletionRow {
  std::string prompt, completion;
};
// {"text": "…"}: continued pre-training.
struct TextRow {
  std::string text;
};
// {"input_ids": […], "labels": […]}: tokens as they are. A label is -100 (not trained) or the id itself, as in Hugging
// Face's datasets: labels are not shifted. Without labels every token is trained.
struct TokenRow {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  // 0 or 1, same length as ids
};

struct Row {
  std::variant<ChatRow, CompletionRow, TextRow, TokenRow> content;
  int64_t line = 0;  // 1-based; in a Parquet file the number of the row
  RowUnit unit = RowUnit::kLine;
};

struct RowLimits {
  int64_t max_line_bytes = 16 << 20;  // a longer line is a file that is not JSON lines; a row of Parquet counts as JSON
  int max_depth = 64;                 // of nested arrays and objects; deeper ones are attacks, not data
  int64_t max_expansion = 256;        // of a compressed file; rows that repeat each other reach a fifth of it
};

// `line` or `row`.
std::string UnitName(RowUnit unit);
// Where a row is, for messages: `train.jsonl:17`, or `train.parquet, row 17`.
std::string RowPosition(std::string_view file, int64_t number, RowUnit unit);

// Turns one line (without its newline) into a row. INVALID_ARGUMENT says what is wrong, without
// file and line.
absl::StatusOr<Row> ParseRow(std::string_view line, int64_t line_number, const RowLimits& limits = {});

// Reads a file from start to end: JSON lines, also compressed by gzip or zstd, or Parquet, whose rows are read as the
// lines that have the same fields. Empty lines are skipped; a UTF-8 byte order mark at the start is too.
class RowReader {
 public:
  // `name` is what messages call the file; default: the last part of `path`. NOT_FOUND if it cannot
  // be opened, INVALID_ARGUMENT if only its name is that of a Parquet file.
  static absl::StatusOr<RowReader> Open(const std::string& path, std::string name = "", RowLimits limits = {});

  // The next row; nullopt at the end of the file. INVALID_ARGUMENT `train.jsonl:17: …` for a line
  // that is no row: calling again goes on behind it; so for compressed data and Parquet that are damaged, behind which
  // the file ends. DATA_LOSS if the file cannot be read on.
  absl::StatusOr<std::optional<Row>> Next();

  // Number and text of the line that the last Next() looked at.
  int64_t line_number() const { return line_number_; }
  std::string_view line() const { return line_; }
  const std::string& name() const { return name_; }
  RowUnit unit() const { return input_->unit(); }

 private:
  RowReader(std::unique_ptr<TextSource> input, std::string name, RowLimits limits)
      : input_(std::move(input)), name_(std::move(name)), limits_(limits) {}
  // Reads the next line into `line_`; false at the end. Sets `too_long_` instead of keeping an
  // over-long one.
  absl::StatusOr<bool> ReadLine();
  absl::Status LineError(std::string_view message) const;

  std::unique_ptr<TextSource> input_;
  std::string_view piece_;  // of the file, not read yet
  bool at_end_ = false;
  std::string name_;
  RowLimits limits_;
  std::string line_;
  int64_t line_number_ = 0;
  bool too_long_ = false;
};

}  // namespace luthier
