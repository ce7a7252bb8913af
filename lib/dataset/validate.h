// Reading a whole file: what is in it, what is wrong with it, and its examples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/dataset/encode.h"
#include "lib/dataset/rows.h"

namespace luthier {

struct Violation {
  std::string file;
  int64_t line = 0;  // 1-based; 0: the file as a whole
  std::string message;
  RowUnit unit = RowUnit::kLine;  // of `line`
};

// A row whose line is equal to an earlier one.
struct RepeatedRow {
  std::string file;
  int64_t line = 0, first_line = 0;
  RowUnit unit = RowUnit::kLine;
};

struct ValidationReport {
  // A longer list helps nobody: whoever has repaired these checks again.
  static constexpr int kMaxViolations = 20;
  static constexpr int kMaxRepeatedRows = 5;

  int64_t rows = 0;  // that are in order
  int64_t chat_rows = 0, completion_rows = 0, text_rows = 0, token_rows = 0;
  RowUnit unit = RowUnit::kLine;      // of a report of one file: what its numbers of lines count
  int64_t bytes = 0;                  // of lines; those of Parquet count as JSON
  int64_t duplicates = 0;             // rows whose line is equal to an earlier one of their file
  bool duplicates_at_least = false;   // a file had more rows than are kept for comparison: there may be more
  std::vector<RepeatedRow> repeated;  // the first kMaxRepeatedRows
  // Below: 0 in a check without a tokenizer.
  int64_t tokens = 0, trained_tokens = 0;
  int64_t longest_row_tokens = 0, longest_row_line = 0;
  int64_t truncated = 0;  // rows cut at max_length
  int64_t dropped = 0;    // rows left out for their length, or left without a trained token by the cut
  // Rows by length: bucket i counts those of (2^(i-1), 2^i] tokens.
  std::vector<int64_t> length_histogram;

  std::vector<Violation> violations;  // the first kMaxViolations
  int64_t violation_count = 0;        // all of them

  bool ok() const { return violation_count == 0; }
  // OK, or INVALID_ARGUMENT with the violations, one on each line.
  absl::Status ToStatus() const;
  // Adds the counts and violations of another file.
  void Merge(const ValidationReport& other);
};

OrderedJson ToJson(const ValidationReport& report);

// Checks that every line or row of Parquet is a row of ours; needs no model. `name`: what messages call the file
// (default: its last part). The status is an error only if the file cannot be read; what is wrong with the data is in
// the report. `on_row`: called for each row that is one.
absl::StatusOr<ValidationReport> CheckStructure(
    const std::string& path, const std::string& name = "",
    absl::FunctionRef<void(const Row&)> on_row = [](const Row&) {});

// Encodes every row as training would, by so many threads, and keeps the numbers only. What comes out, here and below,
// does not depend on the number of threads.
absl::StatusOr<ValidationReport> Validate(const std::string& path, const RowEncoder& encoder,
                                          const std::string& name = "", int threads = 1);

// Asks the rows of a file in their order, as an evaluation by generation does, until there are `most` prompts. `use`
// gets each row that has an answer, with its prompt or why the template makes none of it. Errors: of a row that cannot
// be read.
absl::Status ForEachPrompt(const std::string& path, const RowEncoder& encoder, int64_t most,
                           absl::FunctionRef<void(const Row&, absl::StatusOr<Prompt>)> use);

struct LoadedExamples {
  std::vector<Example> examples;  // in file order, dropped rows left out
  ValidationReport report;        // of all files
  std::vector<ValidationReport> file_reports;
};
// Encodes all files of a job, one after the other. `names`: what messages call them, one each (default: the last parts
// of their paths). INVALID_ARGUMENT with the violations if there are any.
absl::StatusOr<LoadedExamples> LoadExamples(const std::vector<std::string>& paths, const RowEncoder& encoder,
                                            const std::vector<std::string>& names = {}, int threads = 1);
// What LoadExamples would give with `encoder`, made of what it gave with one that has no max_length and is like it
// otherwise: encoding again would double a short start. `names` as there, and needed. Errors: INVALID_ARGUMENT;
// OUT_OF_RANGE, which names no line, if rows that are too long are refused.
absl::StatusOr<LoadedExamples> ShortenExamples(LoadedExamples loaded, const RowEncoder& encoder,
                                               const std::vector<std::string>& names);

}  // namespace luthier
