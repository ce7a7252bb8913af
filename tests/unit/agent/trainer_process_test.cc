// Real processes: shell scripts that behave as badly as a trainer may.
#include "worker/agent/trainer_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"
#include "worker/agent/memory_kills.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class TrainerProcessTest : public testing::Test {
 protected:
  void Start(const std::string& script) {
    const auto started = TryStart({"/bin/sh", "-c", script});
    ASSERT_TRUE(started.ok()) << started;
  }
  absl::Status TryStart(std::vector<std::string> arguments) {
    mark_ = folder_.path() + ":jobs/j/attempts/1";
    auto process = TrainerProcess::Start({std::move(arguments), {"EXTRA=value"}, mark_},
                                         {[this](std::string line) { events_.push_back(std::move(line)); },
                                          [this](std::string line) { log_.push_back(std::move(line)); }});
    if (!process.ok()) return process.status();
    process_ = *std::move(process);
    return absl::OkStatus();
  }
  bool Alive(pid_t pid) { return kill(pid, 0) == 0; }
  TrainerProcess::Exit RunToEnd() {
    EXPECT_TRUE(WaitFor([this] { return !process_->Listen(absl::Milliseconds(10)); }));
    const auto exit = process_->End();
    EXPECT_TRUE(exit.ok()) << exit.status();
    return exit.ok() ? *exit : TrainerProcess::Exit{};
  }
  // The number in the line `name N` of the log, once it is there.
  pid_t NumberIn(size_t line) {
    EXPECT_TRUE(WaitFor([&] {
      process_->Listen(absl::Milliseconds(10));
      return log_.size() > line;
    }));
    return log_.size() > line ? std::stoi(log_[line]) : 0;
  }

  TempFolder folder_;
  std::string mark_;
  std::unique_ptr<TrainerProcess> process_;
  std::vector<std::string> events_, log_;
};

TEST_F(TrainerProcessTest, HandsOutEventsAndLogAndTheExitCode) {
  Start("echo one; echo two >&2; echo $EXTRA; printf three; exit 5");
  const TrainerProcess::Exit exit = RunToEnd();
  EXPECT_EQ(exit.code, 5);
  EXPECT_EQ(exit.signal, 0);
  EXPECT_THAT(events_, ElementsAre("one", "value", "three"));
  EXPECT_THAT(log_, ElementsAre("two"));
}

TEST_F(TrainerProcessTest, SaysWhyAProgramCannotBeRun) {
  const absl::Status status = TryStart({folder_.path() + "/no-trainer"});
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("No such file"));
}

TEST_F(TrainerProcessTest, AsksForAStopOnStandardInput) {
  Start("read command; echo \"$command\"");
  process_->AskToStop();
  RunToEnd();
  EXPECT_THAT(events_, ElementsAre("{\"command\": \"stop\"}"));
}

TEST_F(TrainerProcessTest, TellsASignalFromAnExitAndItsOwnKillFromAnothers) {
  Start("kill -9 $$");
  TrainerProcess::Exit exit = RunToEnd();
  EXPECT_EQ(exit.signal, SIGKILL);
  EXPECT_FALSE(exit.killed);
  Start("while :; do sleep 1; done");
  process_->Kill();
  exit = RunToEnd();
  EXPECT_EQ(exit.signal, SIGKILL);
  EXPECT_TRUE(exit.killed);
}

TEST_F(TrainerProcessTest, KillsATreeThatIgnoresSigterm) {
  Start("trap '' TERM; (trap '' TERM; sleep 300) & echo $! >&2; wait");
  const pid_t grandchild = NumberIn(0);
  process_->Kill();
  RunToEnd();
  EXPECT_TRUE(WaitFor([&] { return !Alive(grandchild); }));
}

TEST_F(TrainerProcessTest, EndsAGrandchildThatLeftTheGroupAndHoldsThePipesOpen) {
  Start("setsid sleep 300 & echo $! >&2; exit 0");
  const pid_t grandchild = NumberIn(0);
  EXPECT_EQ(RunToEnd().code, 0);
  EXPECT_TRUE(WaitFor([&] { return !Alive(grandchild); }));
}

TEST_F(TrainerProcessTest, SurvivesAFloodAndALineWithoutEnd) {
  Start("head -c 30000000 /dev/zero | tr '\\0' x; echo; echo '{}'; head -c 3000000 /dev/urandom >&2");
  EXPECT_EQ(RunToEnd().code, 0);
  EXPECT_THAT(events_, ElementsAre("{}"));
  EXPECT_THAT(log_, testing::Contains(HasSubstr("was dropped")));
  for (const std::string& line : log_) EXPECT_LE(line.size(), 4096u);
}

TEST_F(TrainerProcessTest, InheritsNoDescriptorOfTheAgent) {
  const int leaked = dup(STDERR_FILENO);  // without the flag that closes it
  Start("ls /proc/self/fd");
  RunToEnd();
  close(leaked);
  EXPECT_THAT(events_, ElementsAre("0", "1", "2", testing::_)) << "the last one is that of ls itself";
}

TEST_F(TrainerProcessTest, DiesWithTheThreadThatStartedIt) {
  std::thread starter([this] { Start("sleep 300"); });
  starter.join();
  EXPECT_EQ(RunToEnd().signal, SIGKILL);
}

TEST_F(TrainerProcessTest, FindsWhatAnAgentBeforeItLeftRunning) {
  Start("sleep 300 & echo $! >&2; wait");
  const pid_t grandchild = NumberIn(0), child = process_->pid();
  EXPECT_TRUE(EndMarkedProcesses(folder_.path() + ":", absl::Seconds(10)).ok());
  EXPECT_TRUE(WaitFor([&] { return !Alive(grandchild); })) << "nobody has collected it yet";
  EXPECT_EQ(RunToEnd().signal, SIGKILL);
  EXPECT_FALSE(Alive(child));
}

TEST(MemoryKillsTest, SeesThatTheKernelCountedAKill) {
  const TempFolder folder;
  const std::string events = folder.path() + "/memory.events";
  std::ofstream(events) << "low 0\nhigh 3\nmax 7\noom 1\noom_kill 1\n";
  const MemoryKills kills({events, folder.path() + "/absent"});
  EXPECT_FALSE(kills.Happened());
  std::ofstream(events) << "low 0\nhigh 3\nmax 8\noom 2\noom_kill 2\n";
  EXPECT_TRUE(kills.Happened());
}

TEST(MemoryKillsTest, KnowsWhereThisMachineCounts) {
  EXPECT_THAT(MemoryKills::Counters(), testing::Contains("/proc/vmstat"));
  EXPECT_FALSE(MemoryKills().Happened());
}

}  // namespace
}  // namespace luthier
