// Parquet files: those of pyarrow say what the JSON lines beside them say, and those that lie are refused. Both are
// made by tests/fixtures/parquet/make.py.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/dataset/rows.h"
#include "lib/dataset/validate.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/dataset/fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

const std::string kFolder = "tests/fixtures/parquet/";

// Prints what a row of Parquet can lose or change: tools, calls, and whether a field is there.
constexpr char kToolTemplate[] =
    "{% if tools %}{{ tools|tojson + '\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.name is defined %}{{ m.name }}{% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content if m.content is string else '' }}"
    "{% if m.tool_calls is defined %}{{ m.tool_calls|tojson }}{% endif %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' "
    "}}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What reading the whole file gives: the text of each row, then its fault if there is one.
std::vector<std::string> ReadAll(const std::string& path, RowLimits limits = {}) {
  RowReader reader = RowReader::Open(path, "rows", limits).value();
  std::vector<std::string> read;
  while (true) {
    const absl::StatusOr<std::optional<Row>> row = reader.Next();
    if (row.ok() && !row->has_value()) return read;
    read.push_back(row.ok() ? std::string(reader.line()) : std::string(row.status().message()));
  }
}

OrderedJson WithoutUnits(OrderedJson report) {
  report.erase("unit");
  for (const char* list : {"violations", "repeated"}) {
    for (OrderedJson& entry : report[list]) entry.erase("unit");
  }
  return report;
}

class SameRowsTest : public ::testing::TestWithParam<const char*> {
 protected:
  const std::string lines_ = kFolder + GetParam() + ".jsonl", table_ = kFolder + GetParam() + ".parquet";
  const Tokenizer tokenizer_ = FixtureTokenizer();
  const ChatTemplate chat_template_ = Compiled(kToolTemplate);
  const RowEncoder encoder_{tokenizer_, &chat_template_, {}};
};

TEST_P(SameRowsTest, GiveTheSameExamplesAsTheLines) {
  RowReader lines = RowReader::Open(lines_).value(), table = RowReader::Open(table_).value();
  int examples = 0;
  while (true) {
    const absl::StatusOr<std::optional<Row>> line = lines.Next(), row = table.Next();
    EXPECT_EQ(table.line(), lines.line());
    ASSERT_EQ(row.ok(), line.ok()) << row.status() << line.status();
    if (!row.ok()) continue;
    ASSERT_EQ(row->has_value(), line->has_value());
    if (!row->has_value()) break;
    EXPECT_EQ((*row)->line, (*line)->line);
    EXPECT_EQ((*row)->unit, RowUnit::kRow);
    const absl::StatusOr<Example> expected = encoder_.Encode(**line), example = encoder_.Encode(**row);
    ASSERT_TRUE(expected.ok()) << expected.status();
    ASSERT_TRUE(example.ok()) << example.status();
    EXPECT_EQ(example->ids, expected->ids);
    EXPECT_EQ(example->trained, expected->trained);
    ++examples;
  }
  EXPECT_GE(examples, 5);
}

TEST_P(SameRowsTest, GiveTheSameReportAsTheLines) {
  const ValidationReport lines = Validate(lines_, encoder_, "rows").value();
  const ValidationReport table = Validate(table_, encoder_, "rows").value();
  EXPECT_EQ(WithoutUnits(ToJson(table)), WithoutUnits(ToJson(lines)));
  EXPECT_EQ(table.unit, RowUnit::kRow);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SameRowsTest, ::testing::Values("chat", "completion", "text", "tokens"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ParquetTest, NamesTheRowThatIsWrong) {
  const ValidationReport report = CheckStructure(kFolder + "chat.parquet").value();
  EXPECT_EQ(report.rows, 6);
  EXPECT_EQ(report.ToStatus(),
            absl::InvalidArgumentError(
                "chat.parquet, row 7: messages[1].content is missing; give a text, or leave the message out"));
  ASSERT_EQ(report.repeated.size(), 1u);
  EXPECT_EQ(RowPosition("f", report.repeated[0].line, report.repeated[0].unit), "f, row 6");
  EXPECT_EQ(ToJson(report)["violations"][0]["unit"], "row");
}

TEST(ParquetTest, IsKnownByItsContentWhateverItsName) {
  const TempFolder folder;
  const std::string path = folder.path() + "/train.jsonl";
  std::filesystem::copy(kFolder + "text.parquet", path);
  EXPECT_EQ(CheckStructure(path)->text_rows, 300);
}

TEST(ParquetTest, ARowThatIsTooLongIsRefusedAndReadingGoesOn) {
  const std::vector<std::string> all = ReadAll(kFolder + "text.parquet");
  const std::vector<std::string> limited = ReadAll(kFolder + "text.parquet", {.max_line_bytes = 40});
  ASSERT_EQ(limited.size(), all.size());
  size_t refused = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool fits = all[i].size() <= 40;
    refused += !fits;
    EXPECT_EQ(limited[i],
              fits ? all[i] : "rows, row " + std::to_string(i + 1) + ": the row is longer than 40 bytes of JSON");
  }
  EXPECT_GT(refused, 0u);
  EXPECT_LT(refused, all.size());
}

TEST(ParquetTest, AFileThatIsCutOffHasNoRows) {
  const TempFolder folder;
  const std::string whole = ReadFile(kFolder + "tokens.parquet");
  for (size_t length = 4; length < whole.size(); ++length) {
    std::ofstream(folder.path() + "/cut", std::ios::binary) << whole.substr(0, length);
    const std::vector<std::string> read = ReadAll(folder.path() + "/cut");
    ASSERT_EQ(read.size(), 1u) << length;
    EXPECT_THAT(read[0], HasSubstr("rows, row 1: the Parquet file is damaged here (")) << length;
  }
}

// The file has a checksum of each page: nothing of a damaged one is taken for a row.
TEST(ParquetTest, ADamagedPageEndsTheFileWithAnError) {
  const TempFolder folder;
  const std::string whole = ReadFile(kFolder + "completion.parquet");
  const std::vector<std::string> rows = ReadAll(kFolder + "completion.parquet");
  int seen = 0;
  for (size_t at = 4; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    std::ofstream(folder.path() + "/damaged", std::ios::binary) << damaged;
    const std::vector<std::string> read = ReadAll(folder.path() + "/damaged");
    if (read.empty() || read.back().find("checksum") == std::string::npos) continue;
    ++seen;
    ASSERT_LT(read.size(), rows.size()) << at;
    EXPECT_TRUE(std::equal(read.begin(), read.end() - 1, rows.begin())) << at;
  }
  EXPECT_GT(seen, 300) << "the bodies of pages are a good part of the file";
}

// Whichever byte has changed, reading ends, without a crash.
TEST(ParquetTest, AChangedByteAnywhereIsNoCrash) {
  const TempFolder folder;
  for (const char* name : {"tokens", "text"}) {
    const std::string whole = ReadFile(kFolder + name + ".parquet");
    const size_t rows = ReadAll(kFolder + name + ".parquet").size();
    for (size_t at = 4; at < whole.size(); at += 3) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ (1 << (at % 8)));
      std::ofstream(folder.path() + "/changed", std::ios::binary) << changed;
      EXPECT_LE(ReadAll(folder.path() + "/changed").size(), rows + 1) << name << " byte " << at;
    }
  }
}

struct Lie {
  const char* file;
  const char* message;
};

void PrintTo(const Lie& lie, std::ostream* out) { *out << lie.file; }

class HostileParquetTest : public ::testing::TestWithParam<Lie> {};

TEST_P(HostileParquetTest, IsRefused) {
  const std::vector<std::string> read = ReadAll(kFolder + "hostile/" + GetParam().file + ".parquet");
  ASSERT_FALSE(read.empty());
  EXPECT_THAT(read.back(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Files, HostileParquetTest,
    ::testing::Values(
        Lie{"footer_beyond_file", "row 1: the Parquet file is damaged here (its footer is longer than the file)"},
        Lie{"fewer_rows_than_footer",
            "row 3: the Parquet file is damaged here (a column has fewer rows than its footer"},
        Lie{"more_rows_than_footer", "row 2: the Parquet file is damaged here (a column has more rows than its footer"},
        Lie{"billions_of_rows", "fewer rows than its footer says"}, Lie{"negative_rows", "negative number of rows"},
        Lie{"column_beyond_file", "a column lies outside of the file"},
        Lie{"column_before_file", "a column lies outside of the file"},
        Lie{"page_beyond_column", "a page is longer than its column"},
        Lie{"page_shorter_than_header", "a page is not as long as its header says"},
        Lie{"page_of_two_gigabytes", "its pages have more than"},
        Lie{"snappy_of_a_gigabyte", "its pages have more than"},
        Lie{"snappy_of_another_size", "a page is not as long as its header says"},
        Lie{"values_beyond_page", "damaged here"}, Lie{"values_of_two_billion", "a page has 2147483647 values"},
        Lie{"negative_values", "negative number of values"},
        Lie{"dictionary_of_two_billion", "a dictionary has not as many values as it says"},
        Lie{"no_dictionary", "a page lacks its dictionary"}, Lie{"index_beyond_dictionary", "damaged here"},
        Lie{"delta_lengths_of_billions", "write it again with plain or dictionary encoding"},
        Lie{"text_beyond_page", "damaged here"}, Lie{"schema_deeper_than_a_stack", "its columns are nested too deeply"},
        Lie{"schema_of_two_billion", "its schema is no tree"}, Lie{"schema_without_a_root", "damaged here"},
        Lie{"bytes_that_are_no_text", "its column `text` holds BYTE_ARRAY"},
        Lie{"lz4", "compressed by LZ4_RAW; write it again with snappy, zstd or gzip"},
        Lie{"list_of_millions", "the row has more than 8389608 values"},
        Lie{"expands_beyond_measure", "its rows have more than"},
        Lie{"same_pages_in_every_row_group", "its pages have more than"},
        Lie{"same_long_header_in_every_row_group", "its pages have more than"}),
    [](const auto& info) { return std::string(info.param.file); });

TEST(ParquetTest, TheFilesThatLieAreGoodButForTheLie) {
  EXPECT_THAT(ReadAll(kFolder + "hostile/good.parquet"),
              ::testing::ElementsAre(R"({"text":"one"})", R"({"text":"two"})"));
  EXPECT_THAT(ReadAll(kFolder + "hostile/no_dictionary_at_zero.parquet"),
              ::testing::ElementsAre(R"({"text":"one"})", R"({"text":"two"})"));
  EXPECT_THAT(ReadAll(kFolder + "hostile/text_that_is_not_utf8.parquet"),
              ::testing::ElementsAre(HasSubstr("row 1: invalid UTF-8 at byte 12"), R"({"text":"two"})"));
  EXPECT_THAT(ReadAll(kFolder + "hostile/lines_that_are_not_utf8.parquet"),
              ::testing::ElementsAre(HasSubstr("row 1: invalid UTF-8 at byte 12"), R"({"text":"two"})"));
}

TEST(ParquetTest, AFileThatOnlyItsNameMakesParquetIsToldSo) {
  const TempFolder folder;
  const std::string path = folder.path() + "/train.parquet";
  std::ofstream(path, std::ios::binary) << "\xFF\x01 no table";
  const absl::Status status = RowReader::Open(path).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("train.parquet: no Parquet file: it does not begin with PAR1"));
}

// Its bytes are all there, as those of an upload are.
TEST(ParquetTest, APageThatIsLargerThanItsRoomInMemoryIsNotRead) {
  const TempFolder folder;
  const std::string path = folder.path() + "/large";
  const std::string content = ReadFile(kFolder + "hostile/page_beyond_memory.parquet");
  constexpr size_t kEnd = 8, kColumn = size_t{601} << 20;
  uint32_t footer = 0;
  std::memcpy(&footer, content.data() + content.size() - kEnd, sizeof(footer));
  const size_t pages = content.size() - kEnd - footer;
  std::ofstream(path, std::ios::binary) << content.substr(0, pages);
  std::filesystem::resize_file(path, 4 + kColumn);  // a hole, which takes no room on the disk
  std::ofstream(path, std::ios::binary | std::ios::app) << content.substr(pages);
  EXPECT_THAT(ReadAll(path), ::testing::ElementsAre(HasSubstr("its pages take more than 536870912 bytes at a time")));
}

// The crate panics over it, and a panic writes where it came from.
TEST(ParquetTest, ADamagedFileWritesNothingIntoTheLog) {
  ::testing::internal::CaptureStderr();
  const std::vector<std::string> read = ReadAll(kFolder + "hostile/values_beyond_page.parquet");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_THAT(read.back(), HasSubstr("its pages contradict each other"));
}

}  // namespace
}  // namespace luthier
