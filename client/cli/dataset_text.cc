#include "client/cli/dataset_text.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/table.h"
#include "client/cli/text.h"

namespace luthier {
namespace {

constexpr int kBarWidth = 40;

std::string KindOfRows(const ValidationReport& report) {
  if (report.rows == 0) return "-";
  if (report.chat_rows == report.rows) return "chat";
  if (report.completion_rows == report.rows) return "prompt, completion";
  if (report.text_rows == report.rows) return "text";
  if (report.token_rows == report.rows) return "input_ids";
  return "mixed";
}

}  // namespace

std::string ReportTable(const std::vector<PartReport>& parts, const Terminal& terminal) {
  const bool counted =
      std::any_of(parts.begin(), parts.end(), [](const PartReport& part) { return part.report.tokens > 0; });
  std::vector<Column> columns = {{"PART"}, {"ROWS", true}, {"KIND"}, {"SIZE", true}, {"REPEATED", true}};
  if (counted) {
    for (const char* heading : {"TOKENS", "TRAINED", "LONGEST", "CUT", "LEFT OUT"}) columns.push_back({heading, true});
  }
  columns.push_back({"WRONG", true});
  Table table(columns);
  for (const PartReport& part : parts) {
    const ValidationReport& report = part.report;
    std::vector<Cell> cells = {part.part, FormatCount(report.rows), KindOfRows(report), FormatBytes(report.bytes),
                               absl::StrCat(FormatCount(report.duplicates), report.duplicates_at_least ? "+" : "")};
    if (counted) {
      cells.emplace_back(FormatCount(report.tokens));
      cells.emplace_back(FormatCount(report.trained_tokens));
      cells.emplace_back(absl::StrCat(FormatCount(report.longest_row_tokens), " (", UnitName(report.unit), " ",
                                      report.longest_row_line, ")"));
      cells.emplace_back(FormatCount(report.truncated));
      cells.emplace_back(FormatCount(report.dropped));
    }
    cells.emplace_back(FormatCount(report.violation_count), report.ok() ? std::optional<Colour>() : Colour::kRed);
    table.AddRow(std::move(cells));
  }
  return table.Render(terminal);
}

std::string RepeatedRows(const std::vector<PartReport>& parts) {
  std::string out;
  for (const PartReport& part : parts) {
    for (const RepeatedRow& row : part.report.repeated) {
      absl::StrAppend(&out, out.empty() ? "\n" : "", RowPosition(row.file, row.line, row.unit), " repeats ",
                      UnitName(row.unit), " ", row.first_line, "\n");
    }
    const int64_t more = part.report.duplicates - static_cast<int64_t>(part.report.repeated.size());
    if (more > 0) {
      absl::StrAppend(&out, "… and ", part.report.duplicates_at_least ? "at least " : "", FormatCount(more),
                      " more of ", part.part, "\n");
    }
  }
  return out;
}

std::string LengthHistogram(const std::vector<PartReport>& parts) {
  ValidationReport all;
  for (const PartReport& part : parts) all.Merge(part.report);
  const std::vector<int64_t>& buckets = all.length_histogram;
  const int64_t most = buckets.empty() ? 0 : *std::max_element(buckets.begin(), buckets.end());
  if (most == 0) return "";
  size_t first = 0;
  while (buckets[first] == 0) ++first;
  std::string out;
  for (size_t i = first; i < buckets.size(); ++i) {
    const int64_t low = i == 0 ? 1 : (int64_t{1} << (i - 1)) + 1, high = int64_t{1} << i;
    std::string bar;
    const int64_t length = (buckets[i] * kBarWidth + most - 1) / most;
    for (int64_t column = 0; column < length; ++column) bar += "█";
    absl::StrAppend(&out, absl::StrFormat("%7s-%-7s tokens %9s rows  %s\n", FormatCount(low), FormatCount(high),
                                          FormatCount(buckets[i]), bar));
  }
  return out;
}

}  // namespace luthier
