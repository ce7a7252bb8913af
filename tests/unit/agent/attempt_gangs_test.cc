// Attempts on one of several nodes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/agent/attempt_fixture.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

class GangAttemptTest : public AttemptTest {
 protected:
  const std::string own_run_ = folder_.AttemptFolder(*AttemptPath::Parse(kName)) + "/run";
};

TEST_F(GangAttemptTest, TellsTheTrainerItsPlace) {
  Trainer("echo \"$@\" > \"$5/arguments\"\n" + std::string(kFinish));
  // What it was started with; nothing is left of the attempt.
  const auto arguments = [&](const std::string& run) {
    EXPECT_TRUE(WaitForEnd());
    std::string line;
    std::getline(std::ifstream(run + "/arguments"), line);
    attempt_.reset();
    fs::remove_all(folder_.JobFolder("j"));
    return line;
  };
  Start();
  EXPECT_THAT(arguments(folder_.RunFolder("j")), EndsWith("/run --die-with-parent"));
  StartInGang(0);
  EXPECT_THAT(arguments(folder_.RunFolder("j")),
              EndsWith(" --node-rank 0 --meeting 10.0.0.1:29402 --address 10.0.0.2"));
  StartInGang(3);
  EXPECT_THAT(arguments(own_run_), EndsWith(" --node-rank 3 --meeting 10.0.0.1:29402 --address 10.0.0.2"));
}

TEST_F(GangAttemptTest, TheLeadingNodeReportsAndPublishesAsIfItWereAlone) {
  Trainer(kStarted + TellStep(2) + kFinish);
  StartInGang(0);
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_THAT(reports, AllOf(Contains("checkpoint"), Contains("stored adapter_model.safetensors")));
  EXPECT_EQ(reports.back(), "ended FINISHED");
}

TEST_F(GangAttemptTest, AnotherNodeReportsNothingButItsEndAndKeepsNothing) {
  checkpoint_ = StoredAt(5, server_);
  Trainer(kStarted + TellStep(7) + "echo 'a line of log' >&2\n");
  StartInGang(1);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended STOPPED"));
  EXPECT_EQ(server_.uploads, 0);
  EXPECT_TRUE(fs::exists(own_run_ + "/checkpoints/step-7"));
  EXPECT_FALSE(fs::exists(own_run_ + "/checkpoints/step-5")) << "the leading node's trainer hands it on";
  EXPECT_THAT(folder_.JobsWithRunFolder(), IsEmpty());
  attempt_->Acknowledge(1);
  EXPECT_TRUE(attempt_->settled());
}

TEST_F(GangAttemptTest, AnotherNodePassesOnWhyItsRanksFailed) {
  Trainer(R"(echo '{"event":"failed","cause":"OOM","message":"out of memory on rank 1"}'; exit 1)");
  StartInGang(1);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended FAILED"));
  EXPECT_EQ(ended_.cause(), "OOM");
  EXPECT_EQ(ended_.message(), "out of memory on rank 1");
}

TEST_F(GangAttemptTest, AnotherNodeIsLostWithTheLastLinesWhenItsTrainerDies) {
  Trainer("echo 'terminate called' >&2; kill -ABRT $$");
  StartInGang(1);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended LOST"));
  EXPECT_EQ(ended_.cause(), "CRASHED");
  EXPECT_THAT(ended_.message(), HasSubstr("terminate called"));
}

TEST_F(GangAttemptTest, AnotherNodesTrainerMaySayNothingForAsLongAsItLikes) {
  SetTheClock();
  Trainer("touch \"$5/runs\"; read command");
  StartInGang(1);
  ASSERT_TRUE(WaitFor([&] { return fs::exists(own_run_ + "/runs"); }));
  minutes_ = 100000;
  EXPECT_FALSE(WaitFor([&] { return attempt_->done(); }, std::chrono::milliseconds(300)));
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended STOPPED"));
}

// The run ends where it is led: a trainer elsewhere hears of that from its ranks.
TEST_F(GangAttemptTest, AnotherNodesTrainerThatDoesNotEndIsKilledAfterTheGrace) {
  Trainer("trap '' TERM\ntouch \"$5/runs\"; while :; do sleep 1; done");
  StartInGang(1);
  ASSERT_TRUE(WaitFor([&] { return fs::exists(own_run_ + "/runs"); }));
  attempt_->Stop(absl::Milliseconds(50), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended STOPPED"));
  EXPECT_THAT(ended_.message(), HasSubstr("killed"));
}

// What the ranks of its node wait for may never come: the grace would keep its devices from the next attempt.
TEST_F(GangAttemptTest, IsKilledAtOnceIfItsJobDoesNotGoOnFromIt) {
  Trainer("trap '' TERM\ntouch \"$5/runs\"; while :; do sleep 1; done");
  for (const int node_rank : {0, 1}) {
    SCOPED_TRACE(node_rank);
    reports_.clear();
    StartInGang(node_rank);
    const std::string run = node_rank == 0 ? folder_.RunFolder("j") : own_run_;
    ASSERT_TRUE(WaitFor([&] { return fs::exists(run + "/runs"); }));
    attempt_->Stop(absl::Hours(1), /*job_goes_on=*/false);
    ASSERT_TRUE(WaitForEnd());
    EXPECT_THAT(Reports(), ElementsAre("ended STOPPED"));
    attempt_.reset();
    fs::remove_all(folder_.JobFolder("j"));
  }
}

TEST_F(GangAttemptTest, LeavesItToAnotherNodeToSayWhyItsRanksEnded) {
  node_.peer_patience = absl::Hours(1);
  Trainer("exit 3");
  for (const int node_rank : {0, 1}) {
    reports_.clear();
    StartInGang(node_rank);
    ASSERT_TRUE(WaitFor([&] { return !attempt_->uses_devices(); })) << "they are free at once";
    EXPECT_FALSE(attempt_->done());
    EXPECT_THAT(Reports(), IsEmpty());
    attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
    ASSERT_TRUE(WaitForEnd());
    EXPECT_THAT(Reports(), ElementsAre("ended STOPPED"));
    attempt_.reset();
    fs::remove_all(folder_.JobFolder("j"));
  }
}

TEST_F(GangAttemptTest, SaysThatRanksOfAnotherNodeAreGoneIfNobodyElseSaysWhy) {
  node_.peer_patience = absl::Milliseconds(50);
  Trainer("echo 'rank 2 closed its connection' >&2; exit 3");
  StartInGang(0);
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
  EXPECT_EQ(ended_.cause(), "PEER");
  EXPECT_THAT(ended_.message(), HasSubstr("rank 2 closed its connection"));
}

TEST_F(GangAttemptTest, WithoutOtherNodesNoneOfTheirRanksCanBeGone) {
  node_.peer_patience = absl::Hours(1);
  Trainer("exit 3");
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.cause(), "CRASHED");
}

TEST_F(GangAttemptTest, IsReportedAsLostByTheNextAgentWithNothingBeforeIt) {
  Trainer(kStarted + std::string("touch \"$5/runs\"; while :; do sleep 1; done"));
  StartInGang(1);
  ASSERT_TRUE(WaitFor([&] { return fs::exists(own_run_ + "/runs"); }));
  StartAgain();
  attempt_->Rewind(0);
  attempt_->GoOn("secret");
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("ended LOST"));
  EXPECT_THAT(folder_.JobsWithRunFolder(), IsEmpty());
}

}  // namespace
}  // namespace luthier
