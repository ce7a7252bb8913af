#include "lib/dataset/validate.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <filesystem>
#include <future>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/repeated_lines.h"

namespace luthier {
namespace {

void AddViolation(ValidationReport& report, const std::string& file, int64_t line, std::string_view message) {
  ++report.violation_count;
  if (report.violations.size() < ValidationReport::kMaxViolations) {
    report.violations.push_back({file, line, std::string(message), report.unit});
  }
}

void CountKind(ValidationReport& report, const Row& row) {
  ++report.rows;
  report.chat_rows += std::holds_alternative<ChatRow>(row.content);
  report.completion_rows += std::holds_alternative<CompletionRow>(row.content);
  report.text_rows += std::holds_alternative<TextRow>(row.content);
  report.token_rows += std::holds_alternative<TokenRow>(row.content);
}

// A line of the file, on its way to being counted.
struct ReadLine {
  int64_t number = 0;
  absl::StatusOr<Row> row;              // or what is wrong with it
  std::optional<int64_t> first_number;  // of an equal line in front of it
};

// Rows are read and used in blocks, which bounds the memory. A tokenizer's threads begin each with an empty cache of
// words, so blocks are large.
constexpr size_t kBlockRows = 8192;
constexpr int64_t kBlockBytes = 4 << 20;

// The next lines; none behind the end of the file. Errors: DATA_LOSS.
absl::StatusOr<std::vector<ReadLine>> ReadBlock(RowReader& reader, RepeatedLines& seen, ValidationReport& report) {
  std::vector<ReadLine> block;
  for (int64_t bytes = 0; block.size() < kBlockRows && bytes < kBlockBytes;) {
    absl::StatusOr<std::optional<Row>> row = reader.Next();
    if (row.ok() && !row->has_value()) break;
    if (absl::IsDataLoss(row.status())) return row.status();
    const int64_t line_bytes = static_cast<int64_t>(reader.line().size()) + 1;
    bytes += line_bytes;
    report.bytes += line_bytes;
    ReadLine& line = block.emplace_back();
    line.number = reader.line_number();
    if (row.ok()) {
      line.row = **std::move(row);
      line.first_number = seen.Find(reader.line(), line.number);
    } else {
      line.row = row.status();
    }
  }
  report.duplicates_at_least = !seen.complete();
  return block;
}

void Count(const ReadLine& line, const std::string& file, ValidationReport& report) {
  if (!line.row.ok()) {
    const std::string prefix = absl::StrCat(RowPosition(file, line.number, report.unit), ": ");
    std::string_view message(line.row.status().message().data(), line.row.status().message().size());
    if (message.starts_with(prefix)) message.remove_prefix(prefix.size());
    return AddViolation(report, file, line.number, message);
  }
  CountKind(report, *line.row);
  if (!line.first_number) return;
  ++report.duplicates;
  if (report.repeated.size() < ValidationReport::kMaxRepeatedRows) {
    report.repeated.push_back({file, line.number, *line.first_number, report.unit});
  }
}

// Reads all rows. `use` gets them block by block, in their order, and puts what is wrong with a row in its place; that
// goes into the report.
absl::StatusOr<ValidationReport> ReadAll(const std::string& path, const std::string& name,
                                         absl::FunctionRef<void(std::vector<ReadLine>&, ValidationReport&)> use) {
  LUTHIER_ASSIGN_OR_RETURN(RowReader reader, RowReader::Open(path, name));
  ValidationReport report;
  report.unit = reader.unit();
  RepeatedLines seen;
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(std::vector<ReadLine> block, ReadBlock(reader, seen, report));
    if (block.empty()) break;
    use(block, report);
    for (const ReadLine& line : block) Count(line, reader.name(), report);
  }
  if (report.rows == 0 && report.ok()) AddViolation(report, reader.name(), 0, "the file holds no rows");
  return report;
}

void CountTokens(const Example& example, ValidationReport& report) {
  const auto length = static_cast<int64_t>(example.ids.size());
  report.tokens += length;
  report.trained_tokens += example.TrainedTokens();
  report.truncated += length < example.full_length;
  if (length > report.longest_row_tokens) {
    report.longest_row_tokens = length;
    report.longest_row_line = example.line;
  }
  const int bucket = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(length, 1) - 1));
  if (static_cast<int>(report.length_histogram.size()) <= bucket) report.length_histogram.resize(bucket + 1);
  ++report.length_histogram[bucket];
}

void CheckSomethingIsLeft(const std::string& name, ValidationReport& report) {
  if (!report.ok() || report.dropped < report.rows) return;
  AddViolation(report, name, 0, "no row within training.max_length has a trained token; raise it");
}

// What `work` throws comes out here, as from one thread. Where the system gives no more threads, those that there are
// do it (libstdc++'s default policy of async).
void ForEachIndex(size_t count, int threads, absl::FunctionRef<void(size_t)> work) {
  std::atomic<size_t> next = 0;
  const auto take = [&] {
    for (size_t index; (index = next.fetch_add(1)) < count;) work(index);
  };
  std::vector<std::future<void>> others;
  for (int i = 1; i < threads; ++i) others.push_back(std::async(take));
  take();
  for (std::future<void>& other : others) other.get();
}

absl::StatusOr<ValidationReport> EncodeAll(const std::string& path, const RowEncoder& encoder, const std::string& name,
                                           int threads, absl::FunctionRef<void(Example)> keep) {
  const auto encode = [&](std::vector<ReadLine>& block, ValidationReport& report) {
    std::vector<absl::StatusOr<Example>> examples(block.size());
    ForEachIndex(block.size(), threads, [&](size_t i) {
      if (block[i].row.ok()) examples[i] = encoder.Encode(*block[i].row);
    });
    for (size_t i = 0; i < block.size(); ++i) {
      if (!block[i].row.ok()) continue;
      if (!examples[i].ok()) {
        block[i].row = examples[i].status();
      } else if (examples[i]->TrainedTokens() == 0) {  // only a row beyond max_length comes back so
        ++report.dropped;
      } else {
        CountTokens(*examples[i], report);
        keep(*std::move(examples[i]));
      }
    }
  };
  LUTHIER_ASSIGN_OR_RETURN(ValidationReport report, ReadAll(path, name, encode));
  CheckSomethingIsLeft(name.empty() ? std::filesystem::path(path).filename().string() : name, report);
  return report;
}

// Without what CountTokens and `dropped` count.
ValidationReport WithoutTokens(ValidationReport report) {
  report.tokens = report.trained_tokens = report.longest_row_tokens = report.longest_row_line = 0;
  report.truncated = report.dropped = 0;
  report.length_histogram.clear();
  return report;
}

// The numbers of a report by name, once for writing and adding.
template <typename Report, typename Visit>
void ForEachCount(Report& report, const Visit& visit) {
  visit("rows", report.rows);
  visit("chat_rows", report.chat_rows);
  visit("completion_rows", report.completion_rows);
  visit("text_rows", report.text_rows);
  visit("token_rows", report.token_rows);
  visit("bytes", report.bytes);
  visit("duplicates", report.duplicates);
  visit("tokens", report.tokens);
  visit("trained_tokens", report.trained_tokens);
  visit("longest_row_tokens", report.longest_row_tokens);
  visit("longest_row_line", report.longest_row_line);
  visit("truncated", report.truncated);
  visit("dropped", report.dropped);
  visit("violation_count", report.violation_count);
}

std::string Where(const Violation& violation) {
  return violation.line == 0 ? violation.file : RowPosition(violation.file, violation.line, violation.unit);
}

}  // namespace

absl::Status ValidationReport::ToStatus() const {
  if (ok()) return absl::OkStatus();
  std::string text;
  for (const Violation& violation : violations) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", Where(violation), ": ", violation.message);
  }
  const int64_t more = violation_count - static_cast<int64_t>(violations.size());
  if (more > 0) absl::StrAppend(&text, "\n… and ", more, " more");
  return absl::InvalidArgumentError(text);
}

void ValidationReport::Merge(const ValidationReport& other) {
  const int64_t longest = longest_row_tokens, line = longest_row_line;
  std::vector<int64_t> counts;
  ForEachCount(other, [&](const char*, int64_t count) { counts.push_back(count); });
  size_t next = 0;
  ForEachCount(*this, [&](const char*, int64_t& count) { count += counts[next++]; });
  const bool other_is_longer = other.longest_row_tokens > longest;
  longest_row_tokens = other_is_longer ? other.longest_row_tokens : longest;
  longest_row_line = other_is_longer ? other.longest_row_line : line;
  length_histogram.resize(std::max(length_histogram.size(), other.length_histogram.size()));
  for (size_t i = 0; i < other.length_histogram.size(); ++i) length_histogram[i] += other.length_histogram[i];
  for (const Violation& violation : other.violations) {
    if (violations.size() < kMaxViolations) violations.push_back(violation);
  }
  duplicates_at_least |= other.duplicates_at_least;
  for (const RepeatedRow& row : other.repeated) {
    if (repeated.size() < kMaxRepeatedRows) repeated.push_back(row);
  }
}

OrderedJson ToJson(const ValidationReport& report) {
  OrderedJson json;
  ForEachCount(report, [&](const char* name, int64_t count) { json[name] = count; });
  json["unit"] = UnitName(report.unit);
  json["duplicates_at_least"] = report.duplicates_at_least;
  json["repeated"] = OrderedJson::array();
  for (const RepeatedRow& row : report.repeated) {
    json["repeated"].push_back(
        {{"file", row.file}, {"line", row.line}, {"first_line", row.first_line}, {"unit", UnitName(row.unit)}});
  }
  json["length_histogram"] = report.length_histogram;
  json["violations"] = OrderedJson::array();
  for (const Violation& violation : report.violations) {
    json["violations"].push_back({{"file", violation.file},
                                  {"line", violation.line},
                                  {"message", violation.message},
                                  {"unit", UnitName(violation.unit)}});
  }
  return json;
}

absl::StatusOr<ValidationReport> CheckStructure(const std::string& path, const std::string& name,
                                                absl::FunctionRef<void(const Row&)> on_row) {
  return ReadAll(path, name, [&](std::vector<ReadLine>& block, ValidationReport&) {
    for (const ReadLine& line : block) {
      if (line.row.ok()) on_row(*line.row);
    }
  });
}

absl::StatusOr<ValidationReport> Validate(const std::string& path, const RowEncoder& encoder, const std::string& name,
                                          int threads) {
  return EncodeAll(path, encoder, name, threads, [](const Example&) {});
}

absl::Status ForEachPrompt(const std::string& path, const RowEncoder& encoder, int64_t most,
                           absl::FunctionRef<void(const Row&, absl::StatusOr<Prompt>)> use) {
  LUTHIER_ASSIGN_OR_RETURN(RowReader reader, RowReader::Open(path));
  for (int64_t prompts = 0; prompts < most;) {
    LUTHIER_ASSIGN_OR_RETURN(const std::optional<Row> row, reader.Next());
    if (!row) break;
    absl::StatusOr<Prompt> prompt = encoder.EncodePrompt(*row);
    if (absl::IsNotFound(prompt.status())) continue;  // a text row: it has a loss and no answer
    prompts += prompt.ok();
    use(*row, std::move(prompt));
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadedExamples> LoadExamples(const std::vector<std::string>& paths, const RowEncoder& encoder,
                                            const std::vector<std::string>& names, int threads) {
  LoadedExamples loaded;
  for (size_t i = 0; i < paths.size(); ++i) {
    const std::string name = names.empty() ? "" : names[i];
    LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report,
                             EncodeAll(paths[i], encoder, name, threads, [&](Example example) {
                               example.file = static_cast<int32_t>(i);
                               loaded.examples.push_back(std::move(example));
                             }));
    loaded.report.Merge(report);
    loaded.file_reports.push_back(report);
  }
  LUTHIER_RETURN_IF_ERROR(loaded.report.ToStatus());
  return loaded;
}

absl::StatusOr<LoadedExamples> ShortenExamples(LoadedExamples loaded, const RowEncoder& encoder,
                                               const std::vector<std::string>& names) {
  LoadedExamples shortened;
  for (const ValidationReport& report : loaded.file_reports) shortened.file_reports.push_back(WithoutTokens(report));
  for (Example& example : loaded.examples) {
    LUTHIER_RETURN_IF_ERROR(encoder.Shorten(example));
    ValidationReport& report = shortened.file_reports[static_cast<size_t>(example.file)];
    if (example.TrainedTokens() == 0) {
      ++report.dropped;
      continue;
    }
    CountTokens(example, report);
    shortened.examples.push_back(std::move(example));
  }
  for (size_t i = 0; i < names.size(); ++i) {
    CheckSomethingIsLeft(names[i], shortened.file_reports[i]);
    shortened.report.Merge(shortened.file_reports[i]);
  }
  LUTHIER_RETURN_IF_ERROR(shortened.report.ToStatus());
  return shortened;
}

}  // namespace luthier
