#include "worker/agent/lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/base/utf8.h"
#include "tests/support/temp_folder.h"
#include "worker/agent/attempt_log.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LineSplitterTest : public testing::Test {
 protected:
  void Add(const std::string& bytes) {
    splitter_.Add(bytes, [this](const std::string& line, bool cut) { lines_.push_back(cut ? line + "…" : line); });
  }
  void Finish() {
    splitter_.Finish([this](const std::string& line, bool) { lines_.push_back(line); });
  }
  LineSplitter splitter_{8};
  std::vector<std::string> lines_;
};

TEST_F(LineSplitterTest, JoinsPiecesIntoLines) {
  Add("on");
  Add("e\n\ntwo\nthr");
  EXPECT_THAT(lines_, ElementsAre("one", "", "two"));
  Finish();
  EXPECT_THAT(lines_, ElementsAre("one", "", "two", "thr"));
}

TEST_F(LineSplitterTest, CutsALineThatIsTooLongAndGoesOnAfterIt) {
  for (int i = 0; i < 100000; ++i) Add("0123456789");
  Add("\nshort\n");
  EXPECT_THAT(lines_, ElementsAre("01234567…", "short"));
}

TEST(LogLineTest, KeepsUtf8AndReplacesControlCharactersAndBrokenBytes) {
  EXPECT_EQ(LogLine("Grüße\tan 東京 🎉\r"), "Grüße\tan 東京 🎉");
  EXPECT_EQ(LogLine("\x1b[31mred"), "\uFFFD[31mred");
  EXPECT_EQ(LogLine(std::string("a\0b", 3)), "a\uFFFDb");
  EXPECT_EQ(LogLine("\xC0\xAF\xED\xA0\x80\xFF"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(LogLine("cut \xE6\x9D"), "cut \uFFFD\uFFFD");
  EXPECT_EQ(LogLine("\xC2\x85"), "\uFFFD");
}

TEST(LogLineTest, IsCutBetweenCharacters) {
  EXPECT_EQ(LogLine(std::string(4094, 'x') + "東京"), std::string(4094, 'x'));
  EXPECT_EQ(LogLine(std::string(4093, 'x') + "東京"), std::string(4093, 'x') + "東");
}

class AttemptLogTest : public testing::Test {
 protected:
  std::vector<std::string> Taken(AttemptLog& log) {
    const std::optional<v1::LogLines> lines = log.Take();
    if (!lines) return {};
    return {lines->lines().begin(), lines->lines().end()};
  }
  TempFolder folder_;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
};

TEST_F(AttemptLogTest, ReportsAFloodInPartAndSaysHowMuchIsMissing) {
  AttemptLog log(folder_.path() + "/log", {.burst_lines = 2, .lines_per_second = 1}, now_);
  for (int i = 1; i <= 5; ++i) log.Add("line " + std::to_string(i), now_);
  EXPECT_THAT(Taken(log), ElementsAre("line 1", "line 2"));
  EXPECT_FALSE(log.Take());
  log.Add("line 6", now_ + absl::Seconds(1));
  EXPECT_THAT(Taken(log), ElementsAre(HasSubstr("3 lines left out"), "line 6"));
  EXPECT_THAT(log.Tail(), HasSubstr("line 2\nline 3\nline 4\nline 5\nline 6"));
}

TEST_F(AttemptLogTest, KeepsTheFileSmallAndTheLinesShort) {
  AttemptLog log(folder_.path() + "/log", {.max_file_bytes = 10000}, now_);
  for (int i = 0; i < 100; ++i) log.Add(std::string(1 << 20, '\xFF'), now_);
  EXPECT_LT(std::filesystem::file_size(folder_.path() + "/log"), 20000u);
  for (const std::string& line : Taken(log)) EXPECT_LE(line.size(), 4096u);
}

}  // namespace
}  // namespace luthier
