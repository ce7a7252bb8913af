// Numbers, tables and the progress line, as they stand on a terminal and in a file.
#include "client/cli/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <future>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/duration_flag.h"
#include "client/cli/progress_line.h"
#include "client/cli/screen.h"
#include "client/cli/table.h"
#include "client/cli/terminal.h"
#include "client/cli/waiting_line.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
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

TEST(TextTest, ATimeSaysItsZone) {
  google::protobuf::Timestamp time;
  time.set_seconds(1'800'000'000);
  const std::string zone = absl::FormatTime("%Z", ToTime(time), absl::LocalTimeZone());
  EXPECT_THAT(FormatTime(time), AllOf(StartsWith("2027-01-1"), testing::EndsWith(absl::StrCat(" ", zone))));
}

TEST(TextTest, ReadsDurationsWithDaysAndRefusesWhatIsNone) {
  EXPECT_EQ(*ParseDurationFlag("--since", "90s"), absl::Seconds(90));
  EXPECT_EQ(*ParseDurationFlag("--since", "1h30m"), absl::Minutes(90));
  EXPECT_EQ(*ParseDurationFlag("--since", "7d"), absl::Hours(7 * 24));
  EXPECT_EQ(*ParseDurationFlag("--since", "1d12h"), absl::Hours(36));
  EXPECT_EQ(*ParseDurationFlag("--since", ""), absl::InfiniteDuration());
  for (const std::string wrong :
       {"0", "0d", "d", "5", "-1d", "1d-2h", "1d2", "1.5d", "1d2d", "9999999999d", "inf", "1dinf", "soon"}) {
    const absl::Status status = ParseDurationFlag("--since", wrong).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("--since: '", wrong, "'")), HasSubstr("7d")))
        << wrong;
  }
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
  EXPECT_EQ(Ellipsize("a \x1b[31mred\x1b[0m b", 7), "a \x1b[31mred\x1b[0m b");
  EXPECT_EQ(Ellipsize("a \x1b[31mred\x1b[0m b", 4), "a \x1b[31mr…\x1b[0m");
}

TEST(TerminalTest, BreaksTextAtSpaces) {
  EXPECT_EQ(WrapText("one two three", 7), "one two\nthree");
  EXPECT_EQ(WrapText("one two three", 3), "one\ntwo\nthree");
  EXPECT_EQ(WrapText("a\nb c", 80), "a\nb c");
  EXPECT_EQ(WrapText("one line\n", 4), "one\nline\n");
  EXPECT_EQ(WrapText("one two", 0), "one two");
  EXPECT_EQ(WrapText("", 10), "");
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

TEST(TableTest, WhatARowSaysDoesNotChangeWithTime) {
  const auto at = [](const std::string& age, const std::string& state) {
    Table table({{"NAME"}, {"STATE"}, {"AGE", true, false, true}});
    table.AddRow({"a", state, age});
    return table.Content(0);
  };
  EXPECT_EQ(at("1s", "QUEUED"), at("2s", "QUEUED"));
  EXPECT_NE(at("1s", "QUEUED"), at("1s", "RUNNING"));
}

// What a terminal shows that is told `output`: of its sequences, only those that we write.
std::vector<std::string> Shown(const std::string& output) {
  std::vector<std::string> lines(1);
  size_t row = 0, column = 0;
  for (size_t i = 0; i < output.size(); ++i) {
    if (output[i] == '\n') {
      column = 0;
      if (++row == lines.size()) lines.emplace_back();
    } else if (output[i] == '\r') {
      column = 0;
    } else if (output[i] != '\x1b') {
      lines[row].resize(column);
      lines[row] += output[i];
      ++column;
    } else {
      const size_t end = output.find_first_of("AHJKhl", i);
      if (output[end] == 'H') row = column = 0;
      if (output[end] == 'A') row -= static_cast<size_t>(std::stoi(output.substr(i + 2)));
      if (output[end] == 'K') lines[row].resize(column);
      if (output[end] == 'J') {
        lines.resize(row + 1);
        lines[row].resize(column);
      }
      i = end;
    }
  }
  return lines;
}

TEST(ScreenTest, DrawsTheNewTextInThePlaceOfTheOldOne) {
  std::ostringstream out;
  Screen screen(out, {.interactive = true, .width = 80, .height = 24});
  out << "a prompt\n";
  screen.Draw("NAME\na\nb\nc\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("a prompt", "NAME", "a", "b", "c", ""));
  const size_t written = out.str().size();
  screen.Draw("NAME\na\nb\nc\n");
  EXPECT_EQ(out.str().size(), written) << "nothing has changed";
  screen.Draw("NAME\nbb\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("a prompt", "NAME", "bb", ""));
  screen.Leave();
  out << "a message\n";
  screen.Draw("NAME\nc\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("a prompt", "NAME", "bb", "a message", "NAME", "c", ""));
}

TEST(ScreenTest, FollowsATerminalWhoseSizeChanges) {
  std::ostringstream out;
  Screen screen(out, {.interactive = true, .width = 80, .height = 24});
  out << "a prompt\n";
  screen.Draw("1\n2\n3\n4\n5\n");
  screen.Resize({.interactive = true, .width = 80, .height = 4});
  screen.Draw("1\n2\n3\n4\n5\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("1", "2", "… and 3 more", "")) << "drawn again, where it surely fits";
  screen.Resize({.interactive = true, .width = 80, .height = 4});
  const size_t written = out.str().size();
  screen.Draw("1\n2\n3\n4\n5\n");
  EXPECT_EQ(out.str().size(), written) << "the size is the same";
  screen.Draw("one\n");
  screen.Leave();
  out << "a message\n";
  screen.Resize({.interactive = true, .width = 80, .height = 24});
  screen.Draw("two\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("one", "a message", "two", "")) << "below what is not ours";
}

TEST(ScreenTest, StaysOnOneScreenAndSaysWhatIsLeftOut) {
  for (int height = 4; height < 12; ++height) {
    std::ostringstream out;
    Screen screen(out, {.interactive = true, .width = 80, .height = height});
    screen.Draw("1\n2\n3\n4\n5\n6\n7\n8\n");
    const std::vector<std::string> shown = Shown(out.str());
    EXPECT_LE(shown.size(), static_cast<size_t>(height));
    EXPECT_EQ(shown[shown.size() - 2], height < 9 ? absl::StrCat("… and ", 8 - (height - 2), " more") : "8");
  }
}

// The terminal, which must not wrap, would cut them without a word.
TEST(ScreenTest, SaysOfLinesThatAreTooLongThatTheyAreCut) {
  std::ostringstream out;
  Screen screen(out, {.interactive = true, .width = 8, .height = 24});
  screen.Draw("NAME  WHY\na     no\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("NAME  W…", "a     no", ""));
  screen.Resize({.interactive = true, .width = 9, .height = 24});
  screen.Draw("NAME  WHY\na     no\n");
  EXPECT_THAT(Shown(out.str()), ElementsAre("NAME  WHY", "a     no", ""));
}

TEST(WaitingLineTest, SaysWhatIsDoneUntilItIsAndThenLeavesNoTrace) {
  std::ostringstream out;
  out << "a prompt\n";
  std::promise<void> drawn;
  int drawings = 0;
  {
    const auto what = [&]() -> std::string {
      if (++drawings == 3) drawn.set_value();
      return absl::StrCat("checking  ", drawings, " rows");
    };
    const WaitingLine line(out, {.interactive = true, .width = 80, .height = 24}, what, absl::Milliseconds(1));
    drawn.get_future().wait();
  }
  EXPECT_THAT(out.str(), HasSubstr("\rchecking  2 rows  "));
  EXPECT_THAT(Shown(out.str()), ElementsAre("a prompt", ""));
}

TEST(WaitingLineTest, SaysNothingOfWhatIsOverAtOnceOrInAFile) {
  std::ostringstream out;
  const auto what = []() -> std::string {
    ADD_FAILURE() << "nobody looks";
    return "";
  };
  WaitingLine(out, {.interactive = true, .width = 80, .height = 24}, what, absl::Hours(1));
  WaitingLine(out, Terminal{}, what, absl::Nanoseconds(1));
  EXPECT_EQ(out.str(), "");
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

TEST(ProgressLineTest, IsFullOnlyAtTheLastStepAndSaysHowLongTheEvaluationsBehindItTake) {
  EXPECT_THAT(ProgressLine(Progress(299, 300), {}, 200), HasSubstr("99%  ███████████████████░"));
  v1::JobProgress last = Progress(300, 300);
  EXPECT_THAT(ProgressLine(last, {}, 200), AllOf(HasSubstr("100%  ████████████████████"), HasSubstr("ETA 1m 20s")));
  last.clear_eta();
  EXPECT_THAT(ProgressLine(last, {}, 200), Not(HasSubstr("ETA")));
  EXPECT_THAT(ProgressLine(Progress(3, 0), {}, 200), StartsWith("step 3/0  0%"));
}

TEST(ProgressLineTest, IsALineOfALogOffTheTerminal) {
  EXPECT_EQ(PlainProgressLine(Progress(120, 300)), "step 120/300  40%  loss 1.2346  5,120 tok/s  ETA 1m 20s");
}

}  // namespace
}  // namespace luthier
