// Numbers, tables and the progress line, as they stand on a terminal and in a file.
#include "client/cli/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_split.h"
#include "client/cli/progress_line.h"
#include "client/cli/table.h"
#include "client/cli/terminal.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Not;
using ::testing::ResultOf;
using ::testing::StartsWith;

TEST(TextTest, GroupsDigitsOfCounts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(3812096), "3,812,096");
  EXPECT_EQ(FormatCount(-1234567), "-1,234,567");
}

TEST(TextTest, GivesBytesTheUnitThatKeepsThemBelowAThousand) {
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(999'960), "1.0 MB");
  EXPECT_EQ(FormatBytes(7'600'000), "7.6 MB");
  EXPECT_EQ(FormatBytes(2'500'000'000'000), "2.5 TB");
}

TEST(TextTest, WritesDurationsWithTheTwoLargestUnits) {
  EXPECT_EQ(DurationText(absl::Milliseconds(45)), "45ms");
  EXPECT_EQ(DurationText(absl::Milliseconds(999)), "999ms");
  EXPECT_EQ(DurationText(absl::Milliseconds(9949)), "9.9s");
  EXPECT_EQ(DurationText(absl::Milliseconds(59600)), "1m 00s");
  EXPECT_EQ(DurationText(absl::Seconds(125)), "2m 05s");
  EXPECT_EQ(DurationText(absl::Minutes(62)), "1h 02m");
  EXPECT_EQ(DurationText(absl::Hours(49)), "2d 01h");
}

TEST(TextTest, DrawsACurveOverItsOwnRangeAndSurvivesValuesThatAreNotFinite) {
  EXPECT_EQ(Sparkline({1, 2, 3, 4, 5, 6, 7, 8}, 8), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(Sparkline({5, 5, 5}, 8), "▁▁▁");
  EXPECT_EQ(Sparkline({9, 9, 0, 7}, 2), "▁█");
  EXPECT_EQ(Sparkline({NAN, 0, INFINITY, 1}, 8), "▁▁▁█");
  EXPECT_EQ(Sparkline({}, 8), "");
}

TEST(TerminalTest, CountsColumnsOfWideCombiningAndBrokenCharacters) {
  EXPECT_EQ(DisplayWidth("abc"), 3);
  EXPECT_EQ(DisplayWidth("größe"), 5);
  EXPECT_EQ(DisplayWidth("日本"), 4);
  EXPECT_EQ(DisplayWidth("e\xCC\x81"), 1);
  EXPECT_EQ(DisplayWidth("\xFF\xFE"), 2);
  EXPECT_EQ(DisplayWidth("\x1b[31mred\x1b[0m"), 3);
}

TEST(TerminalTest, CutsTextAtACharacterAndSaysSo) {
  EXPECT_EQ(Ellipsize("abcdef", 6), "abcdef");
  EXPECT_EQ(Ellipsize("abcdef", 4), "abc…");
  EXPECT_EQ(Ellipsize("日本語", 4), "日…");
  EXPECT_EQ(Ellipsize("abc", 0), "");
}

TEST(TerminalTest, TextOfOthersCannotSteerTheTerminal) {
  EXPECT_EQ(OneLine("a\nb\x1b[2Jc\tdé"), "a b [2Jc dé");
  EXPECT_EQ(OneLine("\xC2\x9B"
                    "31m"),
            " 31m");  // the one-character form of ESC [
}

TEST(TerminalTest, ColoursOnlyWhereTheyAreWanted) {
  EXPECT_EQ(Terminal{}.Paint(Colour::kRed, "x"), "x");
  EXPECT_EQ((Terminal{.interactive = true, .colours = true}).Paint(Colour::kRed, "x"), "\x1b[31mx\x1b[0m");
}

Table SampleTable() {
  Table table({{"NAME", false, true}, {"STATE"}, {"STEP", true}, {"NOTE", false, true}});
  table.AddRow({"intents-with-a-long-name-of-a-job", Cell("RUNNING", Colour::kBlue), "1,200/2,400",
                "the first line\nof several"});
  table.AddRow({"b", "QUEUED", "-", "-"});
  return table;
}

TEST(TableTest, InAFileNothingIsCutAndNothingIsColoured) {
  EXPECT_EQ(SampleTable().Render(Terminal{}),
            "NAME                               STATE           STEP  NOTE\n"
            "intents-with-a-long-name-of-a-job  RUNNING  1,200/2,400  the first line of several\n"
            "b                                  QUEUED             -  -\n");
}

TEST(TableTest, FitsEveryTerminalThatIsWideEnoughForItsFixedColumns) {
  for (int width = 45; width <= 120; ++width) {
    const std::string text = SampleTable().Render({.interactive = true, .colours = true, .width = width});
    EXPECT_THAT(std::vector<std::string>(absl::StrSplit(text, '\n')), Each(ResultOf(DisplayWidth, Le(width))))
        << "width " << width;
    EXPECT_THAT(text, AllOf(HasSubstr("RUNNING"), HasSubstr("1,200/2,400"))) << "columns that may not shrink are whole";
  }
}

v1::JobProgress Progress(int64_t step, int64_t total) {
  v1::JobProgress progress;
  progress.set_step(step);
  progress.set_total_steps(total);
  progress.set_loss(1.23456);
  progress.set_tokens_per_second(5120.4);
  progress.mutable_eta()->set_seconds(80);
  return progress;
}

TEST(ProgressLineTest, ShowsStepBarLossCurveSpeedAndTimeLeft) {
  EXPECT_EQ(ProgressLine(Progress(120, 300), {4, 3, 2, 1}, 200),
            "step 120/300  40%  ████████░░░░░░░░░░░░  loss 1.235  █▆▃▁  5,120 tok/s  ETA 1m 20s");
}

TEST(ProgressLineTest, NeverExceedsTheTerminalAndKeepsStepAndLossLongest) {
  const std::vector<double> losses(100, 1.0);
  for (int width = 1; width <= 130; ++width) {
    EXPECT_LE(DisplayWidth(ProgressLine(Progress(120, 300), losses, width)), width);
  }
  EXPECT_EQ(ProgressLine(Progress(120, 300), losses, 30), "step 120/300  40%  loss 1.235");
  EXPECT_THAT(ProgressLine(Progress(120, 300), losses, 60), AllOf(HasSubstr("ETA 1m 20s"), Not(HasSubstr("░"))));
}

TEST(ProgressLineTest, IsFullOnlyAtTheLastStepAndHasNoTimeLeftThere) {
  EXPECT_THAT(ProgressLine(Progress(299, 300), {}, 200), HasSubstr("99%  ███████████████████░"));
  EXPECT_THAT(ProgressLine(Progress(300, 300), {}, 200),
              AllOf(HasSubstr("100%  ████████████████████"), Not(HasSubstr("ETA"))));
  EXPECT_THAT(ProgressLine(Progress(3, 0), {}, 200), StartsWith("step 3/0  0%"));
}

TEST(ProgressLineTest, IsALineOfALogOffTheTerminal) {
  EXPECT_EQ(PlainProgressLine(Progress(120, 300)), "step 120/300  40%  loss 1.2346  5,120 tok/s  ETA 1m 20s");
}

}  // namespace
}  // namespace luthier
