#include "lib/dataset/rows.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include <zlib.h>
#include <zstd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kGood[] = R"({"text": "fine"})";

struct Fault {
  const char* name;
  std::string line;
  const char* message;
};

void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

class RowFaultTest : public ::testing::TestWithParam<Fault> {};

TEST_P(RowFaultTest, IsReportedWithItsLineAndReadingGoesOn) {
  const TempFolder folder;
  const std::string path = folder.path() + "/train.jsonl";
  std::ofstream(path, std::ios::binary) << kGood << "\n" << GetParam().line << "\n" << kGood << "\n";
  RowReader reader = RowReader::Open(path).value();
  EXPECT_TRUE(reader.Next()->has_value());
  const absl::Status status = reader.Next().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("train.jsonl:2: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_LT(status.message().size(), 600u);
  EXPECT_NO_THROW(static_cast<void>(OrderedJson(std::string(status.message())).dump())) << "it is UTF-8";
  EXPECT_EQ(reader.Next().value()->line, 3);
  EXPECT_FALSE(reader.Next()->has_value());
}

std::string Repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

// A line of 300,000 levels would end the process where it is copied or printed.
INSTANTIATE_TEST_SUITE_P(
    Faults, RowFaultTest,
    ::testing::Values(
        Fault{"malformed", R"({"text": "a",})", "malformed JSON at column 14"},
        Fault{"unfinished", R"({"text": "a)", "malformed JSON"},
        Fault{"unfinished_and_long", R"({"text": ")" + std::string(1'000'000, 'a'), "malformed JSON"},
        Fault{"a_long_role", R"({"messages": [{"role": ")" + std::string(1'000'000, 'a') + R"(", "content": ""}]})",
              "messages[0].role is"},
        Fault{"text_before_it", "é", "malformed JSON at column 1"},
        Fault{"typographic_quotes", "{“text”: \"a\"}", "are its quotes typographic"},
        Fault{"not_an_object", "[1, 2]", "a row must be a JSON object"},
        Fault{"whole_array", R"([{"text": "a"}])", "Write each of its elements on a line of its own"},
        Fault{"start_of_an_array", "[", "Write each of its elements on a line of its own"},
        Fault{"start_of_an_object", "{", "a row must be whole on its line"},
        Fault{"nul", std::string("{\"text\": \"a\0b\"}", 15), "NUL byte at byte 12"},
        Fault{"bad_utf8", "{\"text\": \"a\xC3(\"}", "invalid UTF-8 at byte 12"},
        Fault{"overlong_utf8", "{\"text\": \"\xC0\xAF\"}", "invalid UTF-8"},
        Fault{"surrogate", "{\"text\": \"\xED\xA0\x80\"}", "invalid UTF-8"},
        Fault{"deep", "{\"text\": " + std::string(100000, '['), "nested deeper than 64"},
        Fault{"deep_arguments",
              R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": ")" +
                  Repeated(R"({\"a\":)", 300'000) + "1" + std::string(300'000, '}') + "\"}]}]}",
              "`arguments`: JSON is nested deeper than 64"},
        Fault{"many_keys", "{" + Repeated(R"("a":1,)", 20'000) + R"("text": "a"})", "20001 keys; a row may have 10000"},
        Fault{"huge_number", R"({"text": "12345678901234567890123", "id": -12345678901234567890123})",
              "the whole number -12345678901234567890123 would not be kept exactly"},
        Fault{
            "huge_number_in_arguments",
            R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\"a\": 18446744073709551616}"}]}]})",
            "`arguments`: the whole number 18446744073709551616 would not be kept exactly"},
        Fault{"old_call", R"({"messages": [{"role": "assistant", "content": null, "function_call": {"name": "f"}}]})",
              "messages[0].function_call is an older form"},
        Fault{"old_functions", R"({"messages": [{"role": "assistant", "content": "a"}], "functions": [{"name": "f"}]})",
              "`functions` is an older form"},
        Fault{"unknown_kind", R"({"conversations": [], "id": 1})", "this one has `conversations`, `id`"},
        Fault{"two_kinds", R"({"text": "a", "messages": []})", "a row needs"},
        Fault{"text_is_number", R"({"text": 5})", "`text` must be a string"},
        Fault{"empty_text", R"({"text": ""})", "`text` is empty"},
        Fault{"no_completion", R"({"prompt": "a"})", "`completion` is missing"},
        Fault{"empty_completion", R"({"prompt": "a", "completion": ""})", "`completion` is empty"},
        Fault{"no_messages", R"({"messages": []})", "`messages` is empty; give at least a message"},
        Fault{"messages_are_text", R"({"messages": "a"})", "`messages` must be an array of messages, this is: string"},
        Fault{"no_role", R"({"messages": [{"content": "a"}]})", "messages[0].role is missing"},
        Fault{"no_content", R"({"messages": [{"role": "assistant"}]})", "messages[0].content is missing; give a text"},
        Fault{"no_calls", R"({"messages": [{"role": "assistant", "tool_calls": null}]})",
              "messages[0].content is missing"},
        Fault{"unknown_role",
              R"({"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]})",
              "messages[1].role is \"asistant\"; use system, user, assistant or tool"},
        Fault{"content_is_number", R"({"messages": [{"role": "user", "content": 1}]})", "must be a string"},
        Fault{"picture",
              R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url"}]},)"
              R"( {"role": "assistant", "content": "a"}]})",
              "messages[0].content[1] is of type image_url; models learn from texts only"},
        Fault{"no_answer", R"({"messages": [{"role": "user", "content": "a"}]})",
              "no message has the role `assistant`"},
        Fault{"bad_weight", R"({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]})",
              "must be 0 or 1"},
        Fault{"bad_call", R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]})",
              "needs `function`"},
        Fault{"ids_are_text", R"({"input_ids": "1 2"})", "`input_ids` must be an array"},
        Fault{"no_ids", R"({"input_ids": []})", "this is: an empty one"},
        Fault{"half_id", R"({"input_ids": [1, 2.5]})", "`input_ids[1]` must be a whole number, this is: 2.5"},
        Fault{"negative_id", R"({"input_ids": [1, -2]})", "`input_ids[1]` is -2, which is no token id"},
        Fault{"fewer_labels", R"({"input_ids": [1, 2, 3], "labels": [1, 2]})",
              "`labels` has 2 numbers and `input_ids` has 3"},
        Fault{"shifted_labels", R"({"input_ids": [1, 2, 3], "labels": [2, 3, -100]})",
              "`labels[0]` is 2 where `input_ids` has 1"},
        Fault{"padded", R"({"input_ids": [1, 2], "attention_mask": [1, 0]})", "remove the padding"},
        Fault{"labels_alone", R"({"labels": [1]})", "a row needs"},
        Fault{"bad_tools", R"({"tools": "x", "messages": [{"role": "assistant", "content": "a"}]})", "`tools` must be"},
        Fault{"deep_tools",
              R"({"messages": [{"role": "assistant", "content": "a"}], "tools": ")" + std::string(300'000, '[') + "\"}",
              "`tools`: JSON is nested deeper than 64"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(RowReaderTest, SkipsTheByteOrderMarkEmptyLinesAndCarriageReturns) {
  const TempFolder folder;
  const std::string path = folder.path() + "/data.jsonl";
  std::ofstream(path, std::ios::binary) << "\xEF\xBB\xBF" << kGood << "\r\n\r\n  \n"
                                        << R"({"text": "last"})";
  RowReader reader = RowReader::Open(path).value();
  std::vector<int64_t> lines;
  for (absl::StatusOr<std::optional<Row>> row = reader.Next(); row.ok() && row->has_value(); row = reader.Next()) {
    lines.push_back((*row)->line);
  }
  EXPECT_THAT(lines, ElementsAre(1, 4));
}

TEST(RowReaderTest, NamesAUtf16File) {
  const TempFolder folder;
  std::ofstream(folder.path() + "/a.jsonl", std::ios::binary) << std::string("\xFF\xFE{\0\"\0", 6);
  EXPECT_THAT(std::string(RowReader::Open(folder.path() + "/a.jsonl")->Next().status().message()),
              HasSubstr("a.jsonl:1: the file is UTF-16"));
}

TEST(RowReaderTest, RefusesALineThatIsTooLongWithoutKeepingIt) {
  const TempFolder folder;
  const std::string path = folder.path() + "/a.jsonl";
  std::ofstream(path) << R"({"text": ")" << std::string(5000, 'a') << "\"}\n" << kGood << "\n";
  RowReader reader = RowReader::Open(path, "upload", RowLimits{.max_line_bytes = 1000}).value();
  EXPECT_THAT(std::string(reader.Next().status().message()), HasSubstr("upload:1: the line is longer than 1000 bytes"));
  EXPECT_EQ(reader.line().size(), 1000u);
  EXPECT_EQ(reader.Next().value()->line, 2);
}

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

class CompressedTest : public ::testing::TestWithParam<std::string (*)(const std::string&)> {
 protected:
  // What the reader says of each line until the end: the text of the row, or the error.
  std::vector<std::string> ReadFile(const std::string& content, RowLimits limits = {}) {
    const std::string path = folder_.path() + "/rows";
    std::ofstream(path, std::ios::binary) << content;
    RowReader reader = RowReader::Open(path, "", limits).value();
    std::vector<std::string> rows;
    while (true) {
      const absl::StatusOr<std::optional<Row>> row = reader.Next();
      if (row.ok() && !row->has_value()) return rows;
      rows.push_back(row.ok() ? std::get<TextRow>((*row)->content).text : std::string(row.status().message()));
    }
  }
  std::string Compress(const std::string& text) { return GetParam()(text); }
  const TempFolder folder_;
};

TEST_P(CompressedTest, GivesTheRowsOfThePlainFile) {
  std::string plain;
  std::vector<std::string> texts;
  for (int i = 0; i < 20'000; ++i) {
    texts.push_back("row " + std::to_string(i * 2654435761u));
    plain += R"({"text": ")" + texts.back() + "\"}\n";
  }
  EXPECT_EQ(ReadFile(plain), texts);
  EXPECT_EQ(ReadFile(Compress(plain)), texts);
  // Two compressed files behind one another are one.
  const size_t half = plain.find('\n', plain.size() / 2) - 5;
  EXPECT_EQ(ReadFile(Compress(plain.substr(0, half)) + Compress(plain.substr(half))), texts);
  EXPECT_TRUE(ReadFile(Compress("")).empty());
}

TEST_P(CompressedTest, SaysWhereTheFileIsDamagedAndEnds) {
  std::string plain;
  for (int i = 0; i < 20'000; ++i) plain += R"({"text": "row )" + std::to_string(i * 2654435761u) + "\"}\n";
  const std::string whole = Compress(plain);
  const std::vector<std::string> cut = ReadFile(whole.substr(0, whole.size() / 2));
  EXPECT_GT(cut.size(), 100u);
  EXPECT_THAT(cut.back(), HasSubstr("rows:" + std::to_string(cut.size()) + ": the compressed file is damaged here"));
  EXPECT_THAT(ReadFile(whole + "garbage").back(), HasSubstr("is damaged here"));
}

// A kilobyte that becomes a gigabyte must not keep a server busy.
TEST_P(CompressedTest, RefusesAFileThatExpandsBeyondMeasure) {
  const std::string bomb = Compress(std::string(size_t{40} << 20, ' '));
  ASSERT_LT(bomb.size(), 100'000u);
  EXPECT_THAT(ReadFile(bomb), ElementsAre(HasSubstr("expands to more than 256 times its size")));
  EXPECT_THAT(ReadFile(bomb, {.max_line_bytes = int64_t{1} << 30, .max_expansion = 100'000}), ElementsAre());
}

INSTANTIATE_TEST_SUITE_P(Formats, CompressedTest, ::testing::Values(&Gzip, &Zstd),
                         [](const auto& info) { return std::string(info.index == 0 ? "Gzip" : "Zstd"); });

TEST(RowReaderTest, RefusesWhatCannotBeReadTwice) {
  const TempFolder folder;
  const std::string pipe = folder.path() + "/rows.jsonl";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int writer = open(pipe.c_str(), O_RDWR | O_CLOEXEC);  // so that whoever opens the pipe does not wait for ever
  ASSERT_EQ(write(writer, "{}\n\n", 4), 4);
  for (const std::string& path : {pipe, std::string("/dev/zero")}) {
    EXPECT_THAT(std::string(RowReader::Open(path).status().message()), AllOf(HasSubstr(path), HasSubstr("give a file")))
        << path;
  }
  close(writer);
}

TEST(RowReaderTest, ReportsAFileThatIsNotThere) {
  EXPECT_TRUE(absl::IsNotFound(RowReader::Open("/no/such/file.jsonl").status()));
  EXPECT_TRUE(absl::IsNotFound(RowReader::Open("/tmp").status()));
}

TEST(ParseRowTest, TrainsTheTokensThatHaveALabel) {
  const auto trained = [](const std::string& line) { return std::get<TokenRow>(ParseRow(line, 1)->content).trained; };
  EXPECT_THAT(trained(R"({"input_ids": [7, 8, 9], "labels": [-100, 8, -100], "attention_mask": [1, 1, 1]})"),
              ElementsAre(0, 1, 0));
  EXPECT_THAT(trained(R"({"input_ids": [7, 8]})"), ElementsAre(1, 1));
}

TEST(ParseRowTest, TakesToolsThatAreAStringOfJson) {
  const Row row =
      ParseRow(R"({"tools": "[{\"name\": \"f\"}]", "messages": [{"role": "assistant", "content": "a"}]})", 1).value();
  EXPECT_EQ(std::get<ChatRow>(row.content).tools.dump(), R"([{"name":"f"}])");
}

TEST(ParseRowTest, TurnsArgumentsOfToolCallsIntoObjects) {
  const Row row = ParseRow(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [
      {"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]}]})",
                           1)
                      .value();
  const OrderedJson& call = std::get<ChatRow>(row.content).messages[0]["tool_calls"][0]["function"];
  EXPECT_EQ(call["arguments"].dump(), R"({"b":1,"a":2})");
}

TEST(ParseRowTest, KeepsArgumentsThatAreNoObjectDigitByDigit) {
  for (const std::string text : {"SELECT 12345678901234567890123", "12345678901234567890123"}) {
    const std::string call = absl::StrCat(R"({"function": {"name": "f", "arguments": ")", text, R"("}})");
    const absl::StatusOr<Row> row = ParseRow(
        absl::StrCat(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [)", call, "]}]}"), 1);
    ASSERT_TRUE(row.ok()) << row.status();
    const OrderedJson& message = std::get<ChatRow>(row->content).messages[0];
    EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], text);
  }
}

}  // namespace
}  // namespace luthier
