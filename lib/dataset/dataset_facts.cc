#include "lib/dataset/dataset_facts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lib/dataset/batches.h"

namespace luthier {
namespace {

// The kind of all rows; empty if they are of several.
std::string FormatOf(const ValidationReport& report) {
  if (report.chat_rows == report.rows) return "messages";
  if (report.completion_rows == report.rows) return "prompt_completion";
  if (report.text_rows == report.rows) return "text";
  if (report.token_rows == report.rows) return "input_ids";
  return "";
}

}  // namespace

DatasetFacts FactsOf(const std::vector<ReportedFile>& files) {
  DatasetFacts facts;
  ValidationReport train;
  for (const ReportedFile& file : files) {
    const ValidationReport& report = file.report;
    // Of every part: a chosen max_length must not refuse a row of another one.
    facts.longest_row = std::max(facts.longest_row, report.longest_row_tokens);
    facts.truncated += report.truncated;
    facts.dropped += report.dropped;
    facts.has_validation |= file.part == "validation";
    if (file.part != "train") continue;
    train.Merge(report);
    const int64_t rows = report.rows - report.dropped;
    if (rows == 0) continue;
    const int64_t of_epoch = RowsOfEpoch(rows, file.weight);
    const double times = static_cast<double>(of_epoch) / static_cast<double>(rows);
    facts.rows += of_epoch;
    facts.tokens += std::llround(times * static_cast<double>(report.tokens));
    facts.trained_tokens += std::llround(times * static_cast<double>(report.trained_tokens));
  }
  facts.format = FormatOf(train);
  return facts;
}

nlohmann::json ToJson(const std::vector<ReportedFile>& files) {
  nlohmann::json list = nlohmann::json::array();
  for (const ReportedFile& file : files) {
    const ValidationReport& report = file.report;
    nlohmann::json entry = {{"part", file.part},
                            {"file", file.name},
                            {"rows", report.rows},
                            {"tokens", report.tokens},
                            {"trained_tokens", report.trained_tokens},
                            {"longest_row_tokens", report.longest_row_tokens},
                            {"truncated", report.truncated},
                            {"dropped", report.dropped},
                            {"duplicates", report.duplicates},
                            {"duplicates_at_least", report.duplicates_at_least}};
    if (file.part == "train") entry["weight"] = file.weight;
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace luthier
