// Checkpoints that follow their job to another node.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/agent/attempt_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

TEST_F(AttemptTest, StoresEachCheckpointWhileItTrainsAndSendsNoFileTwice) {
  Trainer(kStarted + TellStep(2) + "while [ ! -e \"$5/go\" ]; do sleep 0.02; done\n" + TellStep(4) + WaitForStop(4));
  Start();
  ASSERT_TRUE(WaitForReport("checkpoint stored 2"));
  EXPECT_EQ(stored_.hash(), Sha256Hex("state2\n"));
  ASSERT_EQ(stored_.files_size(), 2);
  EXPECT_EQ(stored_.files(0).path(), "best-1/weights");
  EXPECT_EQ(stored_.files(1).path(), "step-2/state.json");
  WriteText(folder_.RunFolder("j") + "/go", "");
  ASSERT_TRUE(WaitForReport("checkpoint stored 4"));
  EXPECT_EQ(server_.sent["best-1/weights"], 1);
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_EQ(std::count(reports.begin(), reports.end(), "checkpoint stored 4"), 1);
  EXPECT_EQ(server_.sent["step-4/state.json"], 1);
  EXPECT_FALSE(fs::exists(folder_.AttemptFolder(*AttemptPath::Parse(kName)) + "/upload/4"));
}

TEST_F(AttemptTest, StoresItsLastCheckpointBeforeItsEndIsReported) {
  Trainer(kStarted + WriteStep(7) + WaitForStop(7));
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "stopped", "checkpoint stored 7", "ended STOPPED"));
}

TEST_F(AttemptTest, ACheckpointOfAJobThatIsCancelledIsNotStored) {
  Trainer(kStarted + WriteStep(7) + WaitForStop(7));
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/false);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "stopped", "ended STOPPED"));
  EXPECT_EQ(server_.uploads, 0);
}

TEST_F(AttemptTest, ALargeCheckpointOfAFullModelIsStoredOnlyWhenItsJobHasToMove) {
  node_.max_checkpoint_bytes = 99;
  tuning_ = "full";
  Trainer(kStarted + TellStep(2) + R"(echo '{"event":"progress","step":3}'
)" + WaitForStop(2));
  Start();
  ASSERT_TRUE(WaitForReport("progress"));
  EXPECT_EQ(server_.uploads, 0);
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(),
              ElementsAre("started", "checkpoint", "progress", "stopped", "checkpoint stored 2", "ended STOPPED"));
}

TEST_F(AttemptTest, AnAgentThatEndsDoesNotWaitForAServerThatIsAway) {
  Trainer(kStarted + WriteStep(7) + WaitForStop(7));
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  server_.away = true;
  attempt_->Suspend(absl::Milliseconds(500));
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_EQ(reports.back(), "ended STOPPED");
  EXPECT_EQ(std::count(reports.begin(), reports.end(), "checkpoint stored 7"), 0);
}

TEST_F(AttemptTest, SaysOnceWhyItsCheckpointsCannotBeStored) {
  server_.upload_error = absl::ResourceExhaustedError("the disk is full");
  Trainer(kStarted + TellStep(2) + "while [ ! -e \"$5/go\" ]; do sleep 0.02; done\n" + TellStep(4) + WaitForStop(4));
  Start();
  ASSERT_TRUE(WaitFor([&] { return Reports().size() == 3; }));
  EXPECT_THAT(Reports().back(), HasSubstr("no other node can go on from it: the disk is full"));
  WriteText(folder_.RunFolder("j") + "/go", "");
  ASSERT_TRUE(WaitFor([&] { return server_.uploads >= 2; }));
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(),
              ElementsAre("started", "checkpoint", HasSubstr("log "), "checkpoint", "stopped", "ended STOPPED"));
}

TEST_F(AttemptTest, GoesOnFromTheCheckpointOfAnotherNode) {
  checkpoint_ = StoredAt(5, server_);
  const std::string checkpoints = folder_.RunFolder("j") + "/checkpoints";
  fs::create_directories(checkpoints + "/step-4");  // of an earlier attempt, here
  Trainer(R"(cat "$5/checkpoints/step-5/state.json" "$5/checkpoints/best-1/weights" > "$5/found"
)" + std::string(kFinish));
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_EQ(Reports().back(), "ended FINISHED");
  std::string found;
  std::getline(std::ifstream(folder_.RunFolder("j") + "/found"), found);
  EXPECT_EQ(found, "therebest");
  EXPECT_FALSE(fs::exists(checkpoints + "/step-4")) << "it does not follow from it";
  EXPECT_TRUE(fs::exists(folder_.RunFolder("j") + "/metrics.jsonl")) << "else the trainer refuses the folder";
}

TEST_F(AttemptTest, GoesOnFromItsOwnCheckpointIfThatIsNewer) {
  checkpoint_ = StoredAt(5, server_);
  const std::string checkpoints = folder_.RunFolder("j") + "/checkpoints";
  fs::create_directories(checkpoints + "/step-9");
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_TRUE(fs::exists(checkpoints + "/step-9"));
  EXPECT_FALSE(fs::exists(checkpoints + "/step-5"));
}

TEST_F(AttemptTest, StartsAllTheSameIfTheStoredCheckpointIsGone) {
  checkpoint_ = StoredAt(5, server_);
  checkpoint_.mutable_files(0)->set_sha256(Sha256Hex("never stored"));
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre(HasSubstr("the stored checkpoint of step 5 cannot be used"), "finished",
                                     "stored adapter_model.safetensors", "ended FINISHED"));
}

TEST_F(AttemptTest, ItsLastCheckpointIsStoredByTheNextAgentIfItsTrainerHadStopped) {
  Trainer(kStarted + WriteStep(7) + WaitForStop(7));
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  server_.away = true;
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForReport("stopped"));
  attempt_->Abandon();  // as a crash: nothing more is reported
  ASSERT_TRUE(WaitForEnd());
  server_.away = false;
  StartAgain();
  attempt_->Rewind(0);
  attempt_->GoOn("secret");
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "stopped", "checkpoint stored 7", "ended STOPPED"));
}

}  // namespace
}  // namespace luthier
