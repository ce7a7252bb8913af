#include "server/rows/child_process.h"

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

constexpr absl::Duration kMinute = absl::Minutes(1);

ChildEnd RunShell(const std::string& script, const std::string& input = "", absl::Duration time = kMinute) {
  const absl::StatusOr<ChildEnd> end = RunChild({"/bin/sh", "-c", script}, input, time);
  EXPECT_TRUE(end.ok()) << end.status();
  return end.value_or(ChildEnd());
}

TEST(ChildProcessTest, GetsItsInputAndIsHeard) {
  const std::string input(500'000, 'x');
  const ChildEnd end = RunShell("cat; echo end", input);
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_EQ(end.output, input + "end\n");
}

TEST(ChildProcessTest, MayEndWithoutReading) { EXPECT_EQ(RunShell("exit 3", std::string(4 << 20, 'x')).exit_code, 3); }

TEST(ChildProcessTest, MayDieByASignal) {
  const ChildEnd end = RunShell("kill -TERM $$");
  EXPECT_EQ(end.exit_code, -1);
  EXPECT_EQ(end.signal, SIGTERM);
  EXPECT_FALSE(end.out_of_time);
}

TEST(ChildProcessTest, IsKilledWhenItsTimeIsOver) {
  const ChildEnd end = RunShell("while :; do :; done", "", absl::Milliseconds(200));
  EXPECT_EQ(end.signal, SIGKILL);
  EXPECT_TRUE(end.out_of_time);
}

TEST(ChildProcessTest, IsKilledWhenItDoesNotStopTalking) {
  const absl::StatusOr<ChildEnd> end = RunChild({"/usr/bin/yes"}, "", kMinute);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->signal, SIGKILL);
  EXPECT_FALSE(end->out_of_time);
  EXPECT_LT(end->output.size(), 2u << 20);
}

TEST(ChildProcessTest, IsKilledAtOnceWhenAStopIsAskedForAndAlsoIfItIsStartedLater) {
  const TempFolder folder;
  const std::string started = folder.path() + "/started";
  const std::vector<std::string> endless = {"/bin/sh", "-c", "echo > " + started + "; while :; do :; done"};
  std::stop_source stop;
  absl::Status under_way;
  std::thread caller([&] { under_way = RunChild(endless, "", absl::Hours(1), stop.get_token()).status(); });
  EXPECT_TRUE(WaitFor([&] { return std::filesystem::exists(started); }));
  stop.request_stop();
  caller.join();
  EXPECT_TRUE(absl::IsUnavailable(under_way)) << under_way;
  const absl::Status later = RunChild(endless, "", absl::Hours(1), stop.get_token()).status();
  EXPECT_TRUE(absl::IsUnavailable(later)) << later;
}

TEST(ChildProcessTest, InheritsNoDescriptor) {
  const int leaked = dup(STDERR_FILENO);  // without the flag that closes it
  EXPECT_EQ(RunShell("ls /proc/self/fd").output, "0\n1\n2\n3\n") << "the last one is that of ls itself";
  close(leaked);
}

TEST(ChildProcessTest, ThatCannotBeStartedIsAnErrorForNow) {
  const absl::Status status = RunChild({"/nowhere"}, "", kMinute).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace luthier
