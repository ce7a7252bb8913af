#include "lib/dataset/rows.h"
#include "tests/fuzz/input.h"

namespace luthier {
namespace {

void CheckRow(const Row& row) {
  if (const auto* chat = std::get_if<ChatRow>(&row.content)) {
    bool has_answer = false;
    for (const OrderedJson& message : chat->messages) has_answer |= message.at("role") == "assistant";
    Require(has_answer, "a conversation has an answer");
    // As the row goes to the template.
    Require(!chat->messages.dump().empty() && !chat->tools.dump().empty() && !chat->variables.dump().empty(),
            "a conversation can be printed");
  } else if (const auto* completion = std::get_if<CompletionRow>(&row.content)) {
    Require(!completion->completion.empty(), "a completion is not empty");
  } else if (const auto* tokens = std::get_if<TokenRow>(&row.content)) {
    Require(!tokens->ids.empty() && tokens->ids.size() == tokens->trained.size(), "each token is trained or not");
  } else {
    Require(!std::get<TextRow>(row.content).text.empty(), "a text is not empty");
  }
}

void ReadAll(const std::string& path, const RowLimits& limits, size_t bytes) {
  absl::StatusOr<RowReader> reader = RowReader::Open(path, "rows", limits);
  Require(reader.ok(), "the file opens");
  // A line takes a byte. A kilobyte of Parquet may have a million rows, which would take longer than fuzz.sh allows.
  const bool has_lines = reader->unit() == RowUnit::kLine;
  const size_t most_rows = has_lines ? bytes : 50'000;
  for (size_t i = 0; i <= most_rows; ++i) {
    const absl::StatusOr<std::optional<Row>> row = reader->Next();
    if (row.ok() && !row->has_value()) return;
    Require(!absl::IsDataLoss(row.status()), "the file can be read on");
    if (row.ok()) CheckRow(**row);
  }
  Require(!has_lines, "reading ends");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputFile input(data, size);
  ReadAll(input.path(), {}, size);
  ReadAll(input.path(), {.max_line_bytes = 100, .max_depth = 3}, size);
  return 0;
}

}  // namespace luthier
