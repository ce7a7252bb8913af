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
  } else {
    Require(!std::get<TextRow>(row.content).text.empty(), "a text is not empty");
  }
}

void ReadAll(const std::string& path, const RowLimits& limits, size_t most_lines) {
  absl::StatusOr<RowReader> reader = RowReader::Open(path, "rows", limits);
  Require(reader.ok(), "the file opens");
  for (size_t line = 0; line <= most_lines; ++line) {
    const absl::StatusOr<std::optional<Row>> row = reader->Next();
    if (row.ok() && !row->has_value()) return;
    Require(!absl::IsDataLoss(row.status()), "the file can be read on");
    if (row.ok()) CheckRow(**row);
  }
  Require(false, "reading ends");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputFile input(data, size);
  ReadAll(input.path(), {}, size);
  ReadAll(input.path(), {.max_line_bytes = 100, .max_depth = 3}, size);
  return 0;
}

}  // namespace luthier
