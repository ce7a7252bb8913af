#include "lib/dataset/rows.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

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
        Fault{"not_an_object", "[1, 2]", "a row must be a JSON object"},
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
        Fault{"unknown_kind", R"({"conversations": [], "id": 1})", "this one has `conversations`, `id`"},
        Fault{"two_kinds", R"({"text": "a", "messages": []})", "a row needs"},
        Fault{"text_is_number", R"({"text": 5})", "`text` must be a string"},
        Fault{"empty_text", R"({"text": ""})", "`text` is empty"},
        Fault{"no_completion", R"({"prompt": "a"})", "`completion` is missing"},
        Fault{"empty_completion", R"({"prompt": "a", "completion": ""})", "`completion` is empty"},
        Fault{"no_messages", R"({"messages": []})", "`messages` must be an array"},
        Fault{"no_role", R"({"messages": [{"content": "a"}]})", "messages[0].role is missing"},
        Fault{"no_content", R"({"messages": [{"role": "assistant"}]})", "messages[0].content is missing"},
        Fault{"no_calls", R"({"messages": [{"role": "assistant", "tool_calls": null}]})",
              "messages[0].content is missing"},
        Fault{"content_is_number", R"({"messages": [{"role": "user", "content": 1}]})", "must be a string"},
        Fault{"no_answer", R"({"messages": [{"role": "user", "content": "a"}]})",
              "no message has the role `assistant`"},
        Fault{"bad_weight", R"({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]})",
              "must be 0 or 1"},
        Fault{"bad_call", R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]})",
              "needs `function`"},
        Fault{"bad_tools", R"({"tools": "x", "messages": [{"role": "assistant", "content": "a"}]})",
              "`tools` must be"}),
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

TEST(RowReaderTest, ReportsAFileThatIsNotThere) {
  EXPECT_TRUE(absl::IsNotFound(RowReader::Open("/no/such/file.jsonl").status()));
  EXPECT_TRUE(absl::IsNotFound(RowReader::Open("/tmp").status()));
}

TEST(ParseRowTest, TurnsArgumentsOfToolCallsIntoObjects) {
  const Row row = ParseRow(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [
      {"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]}]})",
                           1)
                      .value();
  const OrderedJson& call = std::get<ChatRow>(row.content).messages[0]["tool_calls"][0]["function"];
  EXPECT_EQ(call["arguments"].dump(), R"({"b":1,"a":2})");
}

}  // namespace
}  // namespace luthier
