#include "lib/dataset/validate.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/dataset/dataset_facts.h"
#include "lib/dataset/repeated_lines.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/dataset/fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr char kChat[] = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})";

class ValidateTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& content, const std::string& name = "train.jsonl") {
    const std::string path = folder_.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  RowEncoder Encoder(EncodeOptions options = {}) { return RowEncoder(tokenizer_, &chat_template_, options); }

  const TempFolder folder_;
  const Tokenizer tokenizer_ = FixtureTokenizer();
  const ChatTemplate chat_template_ = Compiled(kChatMl);
};

TEST_F(ValidateTest, CountsRowsOfAllKindsInOneFile) {
  const std::string path = Write(
      std::string(kChat) + "\n{\"text\": \"abc\"}\n\n{\"prompt\": \"a\", \"completion\": \"b\"}\n" + kChat + "\n");
  const ValidationReport report = Validate(path, Encoder()).value();
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.rows, 4);
  EXPECT_EQ(report.chat_rows, 2);
  EXPECT_EQ(report.text_rows, 1);
  EXPECT_EQ(report.completion_rows, 1);
  EXPECT_EQ(report.duplicates, 1);
  ASSERT_THAT(report.repeated, SizeIs(1));
  EXPECT_EQ(report.repeated[0].file, "train.jsonl");
  EXPECT_EQ(report.repeated[0].line, 5);
  EXPECT_EQ(report.repeated[0].first_line, 1);
  EXPECT_EQ(report.trained_tokens, 2 + 3 + 2 + 2);
  EXPECT_EQ(report.longest_row_line, 1);
  EXPECT_EQ(report.tokens, 2 * report.longest_row_tokens + 4 + 3);
  EXPECT_EQ(report.length_histogram[2], 2);  // 3 and 4 tokens
  int64_t seen = 0;
  const ValidationReport structure = CheckStructure(path, "", [&](const Row&) { ++seen; }).value();
  EXPECT_EQ(structure.rows, 4);
  EXPECT_EQ(seen, 4);
  EXPECT_EQ(structure.tokens, 0);
  EXPECT_EQ(structure.duplicates, 1);
}

TEST(RepeatedLinesTest, KeepsSoManyLinesAndSaysThatItMayMissOthers) {
  RepeatedLines lines(/*max_lines=*/2);
  EXPECT_EQ(lines.Find("a", 1), std::nullopt);
  EXPECT_EQ(lines.Find("b", 2), std::nullopt);
  EXPECT_EQ(lines.Find("a", 3), 1);
  EXPECT_TRUE(lines.complete());
  EXPECT_EQ(lines.Find("c", 4), std::nullopt);
  EXPECT_FALSE(lines.complete());
  EXPECT_EQ(lines.Find("c", 5), std::nullopt);  // not kept
  EXPECT_EQ(lines.Find("b", 6), 2);
}

TEST_F(ValidateTest, FindsTheShippedDatasetsInOrder) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("examples/tasks")) {
    if (entry.path().extension() != ".jsonl") continue;
    const ValidationReport report = CheckStructure(entry.path()).value();
    EXPECT_TRUE(report.ok()) << report.ToStatus();
    EXPECT_EQ(report.chat_rows, report.rows) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 5 * 3);  // train, validation and test of each task
}

TEST_F(ValidateTest, ListsEveryViolationWithItsLine) {
  const std::string path = Write(std::string(kChat) + "\n{oops\n" + kChat + "\n{\"text\": 1}\n");
  const ValidationReport report = CheckStructure(path, "my data").value();
  EXPECT_EQ(report.violation_count, 2);
  EXPECT_EQ(report.rows, 2);
  ASSERT_THAT(report.violations, SizeIs(2));
  EXPECT_EQ(report.violations[0].line, 2);
  EXPECT_EQ(report.violations[1].message, "`text` must be a string, this is: number");
  EXPECT_THAT(std::string(report.ToStatus().message()), HasSubstr("my data:4: `text` must be a string"));
}

TEST_F(ValidateTest, CapsTheListAndCountsTheRest) {
  std::string content;
  for (int i = 0; i < 50; ++i) content += "{\n";
  const ValidationReport report = CheckStructure(Write(content)).value();
  EXPECT_EQ(report.violation_count, 50);
  EXPECT_THAT(report.violations, SizeIs(ValidationReport::kMaxViolations));
  EXPECT_THAT(std::string(report.ToStatus().message()), HasSubstr("… and 30 more"));
}

TEST_F(ValidateTest, AsksRowsWithAnswersUntilThereAreSoManyPrompts) {
  const std::string refused =
      R"({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]})";
  const std::string path =
      Write(absl::StrCat("{\"text\": \"no answer\"}\n", refused, "\n", kChat, "\n", kChat, "\n", kChat));
  const ChatTemplate asks_somebody =
      Compiled(absl::StrCat("{% if not messages %}{{ raise_exception('no question') }}{% endif %}", kChatMl));
  const RowEncoder encoder(tokenizer_, &asks_somebody, {});
  std::vector<int64_t> asked, refused_lines;
  const auto use = [&](const Row& row, const absl::StatusOr<Prompt>& prompt) {
    (prompt.ok() ? asked : refused_lines).push_back(row.line);
  };
  ASSERT_TRUE(ForEachPrompt(path, encoder, 2, use).ok());
  EXPECT_THAT(asked, ElementsAre(3, 4));
  EXPECT_THAT(refused_lines, ElementsAre(2));
  EXPECT_TRUE(absl::IsNotFound(ForEachPrompt(path + "-gone", encoder, 2, use)));
}

// More rows than a block has, of different lengths, with equal and wrong ones among them.
TEST_F(ValidateTest, GivesTheSameWithAnyNumberOfThreads) {
  const std::string untrained =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]})"
      "\n";
  std::string good, bad;
  for (int i = 0; i < 9000; ++i) {
    const std::string row =
        absl::StrCat("{\"text\": \"", std::string(static_cast<size_t>(1 + i % 100), 'a'), i % 500, "\"}\n");
    absl::StrAppend(&good, row);
    absl::StrAppend(&bad, i % 600 == 7 ? "{\"text\": 1}\n" : i % 600 == 8 ? untrained : row);
  }
  const std::string path = Write(good), bad_path = Write(bad, "bad.jsonl");
  const LoadedExamples one = LoadExamples({path}, Encoder(), {}, 1).value();
  const LoadedExamples many = LoadExamples({path}, Encoder(), {}, 7).value();
  EXPECT_EQ(ToJson(one.report), ToJson(many.report));
  EXPECT_GT(one.report.duplicates, 0);
  ASSERT_THAT(one.examples, SizeIs(9000));
  ASSERT_THAT(many.examples, SizeIs(9000));
  for (size_t i = 0; i < one.examples.size(); ++i) {
    EXPECT_EQ(many.examples[i].line, static_cast<int64_t>(i) + 1);
    ASSERT_EQ(many.examples[i].ids, one.examples[i].ids);
    ASSERT_EQ(many.examples[i].trained, one.examples[i].trained);
  }
  const ValidationReport refused = Validate(bad_path, Encoder(), "", 7).value();
  EXPECT_EQ(ToJson(refused), ToJson(Validate(bad_path, Encoder(), "", 1).value()));
  ASSERT_EQ(refused.violation_count, 30);
  EXPECT_EQ(refused.violations[0].line, 8);
  EXPECT_EQ(refused.violations[9].line, 2409);
}

TEST_F(ValidateTest, RefusesAnEmptyFile) {
  for (const char* content : {"", "\n\n", "\xEF\xBB\xBF"}) {
    EXPECT_EQ(CheckStructure(Write(content))->ToStatus(),
              absl::InvalidArgumentError("train.jsonl: the file holds no rows"));
    EXPECT_FALSE(LoadExamples({Write(content)}, Encoder()).ok());
  }
}

TEST_F(ValidateTest, ReportsARowWithoutATrainedToken) {
  const std::string path = Write(std::string(kChat) + R"(
{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]})");
  EXPECT_THAT(std::string(LoadExamples({path}, Encoder()).status().message()),
              HasSubstr("train.jsonl:2: no token of this row is trained"));
}

TEST_F(ValidateTest, ReportsLongRowsOrCutsAndCountsThem) {
  const std::string path = Write("{\"text\": \"abcdefghij\"}\n{\"text\": \"ab\"}\n" + std::string(kChat) + "\n");
  const ValidationReport refused = Validate(path, Encoder({.max_length = 8})).value();
  EXPECT_EQ(refused.violation_count, 2);
  EXPECT_THAT(refused.violations[0].message, HasSubstr("the row has 11 tokens"));
  const RowEncoder truncating = Encoder({.too_long = EncodeOptions::TooLong::kTruncate, .max_length = 8});
  const LoadedExamples loaded = LoadExamples({path}, truncating).value();
  EXPECT_EQ(loaded.report.truncated, 1);
  EXPECT_EQ(loaded.report.dropped, 1);  // the answer lay behind the cut
  ASSERT_THAT(loaded.examples, SizeIs(2));
  EXPECT_EQ(loaded.examples[0].ids.size(), 8u);
}

TEST_F(ValidateTest, LeavesOutLongRowsWhenAskedAndCountsThem) {
  const std::string path = Write("{\"text\": \"abcdefghij\"}\n{\"text\": \"ab\"}\n");
  const LoadedExamples loaded =
      LoadExamples({path}, Encoder({.too_long = EncodeOptions::TooLong::kDrop, .max_length = 8})).value();
  EXPECT_EQ(loaded.report.dropped, 1);
  EXPECT_EQ(loaded.report.truncated, 0);
  ASSERT_THAT(loaded.examples, SizeIs(1));
}

TEST_F(ValidateTest, RefusesACutThatLeavesNoRow) {
  const RowEncoder truncating = Encoder({.too_long = EncodeOptions::TooLong::kTruncate, .max_length = 4});
  EXPECT_THAT(std::string(LoadExamples({Write(kChat)}, truncating).status().message()),
              HasSubstr("no row within training.max_length has a trained token"));
}

TEST_F(ValidateTest, LoadsSeveralFilesOneAfterTheOther) {
  const std::string first = Write("{\"text\": \"a\"}\n", "a.jsonl"), second = Write("{\"text\": \"bcd\"}\n", "b.jsonl");
  const LoadedExamples loaded = LoadExamples({first, second}, Encoder()).value();
  ASSERT_THAT(loaded.examples, SizeIs(2));
  EXPECT_EQ(loaded.report.rows, 2);
  EXPECT_EQ(loaded.report.longest_row_tokens, 4);
  EXPECT_EQ(loaded.report.tokens, 6);
  EXPECT_THAT(loaded.report.length_histogram, ElementsAre(0, 1, 1));
  EXPECT_TRUE(absl::IsNotFound(LoadExamples({first, folder_.path() + "/none"}, Encoder()).status()));
}

// A file of weight w counts w times: steps, epochs and warnings are chosen by what an epoch really has.
TEST_F(ValidateTest, FactsCountAFileAsOftenAsItsRowsComeUp) {
  ReportedFile once{.part = "train", .name = "a"}, often{.part = "train", .name = "b", .weight = 2.5};
  once.report = Validate(Write("{\"text\": \"abc\"}\n{\"text\": \"d\"}\n"), Encoder()).value();
  often.report = Validate(Write("{\"text\": \"abcdef\"}\n{\"text\": \"ghi\"}\n"), Encoder()).value();
  ReportedFile validation{.part = "validation", .name = "v"};
  validation.report = Validate(Write("{\"text\": \"abcdefghijkl\"}\n"), Encoder()).value();
  const DatasetFacts facts = FactsOf({once, often, validation});
  EXPECT_EQ(facts.rows, 2 + 5);
  EXPECT_EQ(facts.tokens, (4 + 2) + 28);  // 2.5 times 7 + 4, rounded
  EXPECT_EQ(facts.longest_row, 13);
  EXPECT_EQ(facts.format, "text");
  EXPECT_TRUE(facts.has_validation);
}

TEST_F(ValidateTest, TellsInJsonWhatItFound) {
  const ValidationReport report = CheckStructure(Write(std::string(kChat) + "\n{\n" + kChat + "\n")).value();
  const OrderedJson json = ToJson(report);
  EXPECT_EQ(json["rows"], report.rows);
  EXPECT_EQ(json["violations"][0]["message"], report.violations[0].message);
  EXPECT_EQ(json["violations"][0]["unit"], "line");
  EXPECT_EQ(json["repeated"][0]["first_line"], 1);
}

std::string Everything(const LoadedExamples& loaded) {
  OrderedJson all = OrderedJson::array();
  for (const Example& example : loaded.examples) {
    all.push_back({{"ids", example.ids}, {"trained", example.trained}, {"line", example.line}});
    all.push_back({example.full_length, example.file});
  }
  for (const ValidationReport& report : loaded.file_reports) all.push_back(ToJson(report));
  all.push_back(ToJson(loaded.report));
  return all.dump();
}

// A run encodes its rows before it knows how long they may be.
TEST_F(ValidateTest, RowsThatAreShortenedLaterAreThoseThatAreEncodedShort) {
  const std::string first =
      Write(std::string(kChat) + "\n{\"text\": \"a long row of plain text, to be cut\"}\n" + kChat + "\n");
  const std::string second = Write(
      "{\"prompt\": \"a longer question than others\", \"completion\": \"b\"}\n"
      "{\"text\": \"abc\"}\n",
      "more.jsonl");
  const std::vector<std::string> names = {"train.jsonl", "more.jsonl"};
  const LoadedExamples whole = LoadExamples({first, second}, Encoder(), names).value();
  for (const auto too_long :
       {EncodeOptions::TooLong::kTruncate, EncodeOptions::TooLong::kKeepAnswer, EncodeOptions::TooLong::kDrop}) {
    for (const int64_t max_length : {1, 2, 4, 8, 16, 1000}) {
      const RowEncoder encoder = Encoder({.too_long = too_long, .max_length = max_length});
      const auto expected = LoadExamples({first, second}, encoder, names);
      const auto shortened = ShortenExamples(whole, encoder, names);
      EXPECT_EQ(shortened.status(), expected.status()) << max_length;
      if (!expected.ok() || !shortened.ok()) continue;
      EXPECT_EQ(Everything(*shortened), Everything(*expected)) << max_length;
    }
  }
  const RowEncoder refusing = Encoder({.max_length = 8});
  EXPECT_TRUE(absl::IsOutOfRange(ShortenExamples(whole, refusing, names).status()));
}

}  // namespace
}  // namespace luthier
