// The life of an attempt, from its order to its last report.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/agent/attempt_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

namespace fs = std::filesystem;

TEST_F(AttemptTest, TrainsAndPublishes) {
  Trainer(std::string(kStarted) + "cat \"$3\" >&2\n" + kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_THAT(reports, UnorderedElementsAre("started", HasSubstr("log "), "finished",
                                            "stored adapter_model.safetensors", "ended FINISHED"));
  EXPECT_EQ(reports.back(), "ended FINISHED");
  EXPECT_FALSE(attempt_->settled());
  attempt_->Acknowledge(5);
  EXPECT_TRUE(attempt_->settled());
  EXPECT_EQ(server_.uploaded[kName].files.size(), 1u);
  EXPECT_THAT(server_.passes, ElementsAre(Pair(kName, "of the order"))) << "of what it fetched and uploaded";
}

TEST_F(AttemptTest, PublishesAnExportAsWhatItIs) {
  Trainer(std::string(kStarted) + R"(mkdir -p "$5/gguf_adapter"; echo GGUF > "$5/gguf_adapter/adapter.gguf"
echo '{"event":"finished","export":"gguf","artifact":{"kind":"gguf_adapter","path":"elsewhere","bytes":5}}'
)");
  Start();
  ASSERT_TRUE(WaitForEnd());
  v1::ArtifactStored stored;
  while (const std::optional<v1::AttemptReport> report = attempt_->NextReport()) {
    if (report->has_artifact_stored()) stored = report->artifact_stored();
  }
  EXPECT_EQ(stored.kind(), v1::ModelVersion::GGUF_ADAPTER);
  ASSERT_EQ(stored.files_size(), 1);
  EXPECT_EQ(stored.files(0).path(), "adapter.gguf");
}

TEST_F(AttemptTest, ATrainerThatSharesItsDeviceIsToldItsPart) {
  node_.inventory.set_shares(4);
  node_.inventory.set_cpus(10);
  node_.inventory.add_gpus();
  Trainer("env > \"$5/env\"\n" + std::string(kFinish));
  v1::StartAttempt order = Order();
  order.add_gpus(6);  // the third part of GPU 1
  attempt_ = std::make_unique<Attempt>(node_, *AttemptPath::Parse(kName), order);
  ASSERT_TRUE(WaitForEnd());
  std::ifstream environment(folder_.RunFolder("j") + "/env");
  const std::string all((std::istreambuf_iterator<char>(environment)), {});
  EXPECT_THAT(all, HasSubstr("CUDA_VISIBLE_DEVICES=1\n"));
  EXPECT_THAT(all, HasSubstr("LUTHIER_DEVICE_SHARES=4\n"));
  EXPECT_THAT(all, HasSubstr("OMP_NUM_THREADS=2\n"));
  EXPECT_THAT(all, HasSubstr("per_process_memory_fraction:0.250"));
}

TEST_F(AttemptTest, GivesTheTrainerLocalPathsAndTheRunFolder) {
  Trainer(R"(cp "$3" "$5/spec.json"; cat "$5/../attempt-1/base_model/config.json" > "$5/config"; env > "$5/env"
)" + std::string(kFinish));
  Start();
  ASSERT_TRUE(WaitForEnd());
  const std::string run = folder_.RunFolder("j");
  std::ifstream stream(run + "/spec.json");
  const auto spec = nlohmann::json::parse(stream);
  EXPECT_EQ(spec["attempt"], kName);
  EXPECT_EQ(spec["task"], "chat");
  std::string rows, config, variable;
  ASSERT_EQ(spec["dataset"]["train"].size(), 1u);
  const nlohmann::json& train = spec["dataset"]["train"][0];
  EXPECT_EQ(train["weight"], 2.5);
  EXPECT_EQ(train["name"], "rows/train");
  std::getline(std::ifstream(train["path"].get<std::string>()), rows);
  std::getline(std::ifstream(spec["base_model"].get<std::string>() + "/config.json"), config);
  EXPECT_EQ(rows, "rows");
  EXPECT_EQ(config, "config");
  std::getline(std::ifstream(spec["start_adapter"].get<std::string>() + "/adapter_config.json"), config);
  EXPECT_EQ(config, "adapter");
  std::ifstream environment(run + "/env");
  std::string all((std::istreambuf_iterator<char>(environment)), {});
  EXPECT_THAT(all, HasSubstr("CUDA_VISIBLE_DEVICES=\n"));
}

TEST_F(AttemptTest, PassesOnWhatTheTrainerSaysOfItsFailure) {
  Trainer(R"(echo '{"event":"failed","cause":"USER_DATA","message":"row 3 is empty"}'; exit 1)");
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("failed", "ended FAILED"));
  EXPECT_EQ(ended_.cause(), "USER_DATA");
  EXPECT_EQ(ended_.message(), "row 3 is empty");
}

TEST_F(AttemptTest, IsLostWhenTheDiskOfItsNodeIsFull) {
  Trainer(R"(echo '{"event":"failed","cause":"STORAGE","message":"/run: no space left on device"}'; exit 1)");
  testing::internal::CaptureStderr();
  Start();
  const bool ended = WaitForEnd();
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "luthier-worker: jobs/j/attempts/1 ended LOST (STORAGE): /run: no space left on device\n")
      << "for the node's operator";
  ASSERT_TRUE(ended);
  EXPECT_THAT(Reports(), ElementsAre("failed", "ended LOST")) << "another node may have room";
  EXPECT_EQ(ended_.cause(), "STORAGE");
  EXPECT_EQ(ended_.message(), "/run: no space left on device");
}

TEST_F(AttemptTest, IsLostWithTheLastLinesWhenTheTrainerDies) {
  Trainer(std::string(kStarted) + "echo 'terminate called' >&2; kill -ABRT $$");
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
  EXPECT_EQ(ended_.cause(), "CRASHED");
  EXPECT_THAT(ended_.message(), HasSubstr("signal 6"));
  EXPECT_THAT(ended_.message(), HasSubstr("terminate called"));
}

TEST_F(AttemptTest, FailsForLackOfMemoryWhenTheKernelKilledTheTrainer) {
  const std::string counter = temp_.path() + "/memory.events";
  WriteText(counter, "oom_kill 0\n");
  node_.memory_kill_counters = {counter};
  Trainer(absl::StrCat(kStarted, "echo 'oom_kill 1' > ", counter, "; kill -9 $$"));
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::FAILED);
  EXPECT_EQ(ended_.cause(), "OOM");
  EXPECT_THAT(ended_.message(), HasSubstr("micro_batch_tokens"));
}

TEST_F(AttemptTest, IsLostWhenSomebodyElseKilledTheTrainer) {
  Trainer(std::string(kStarted) + "kill -9 $$");
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
  EXPECT_THAT(ended_.message(), HasSubstr("signal 9"));
}

// A trainer that says that it takes steps of half a second, and then nothing but log lines.
TEST_F(AttemptTest, IsLostWhenTheTrainerStalls) {
  SetTheClock();
  Trainer(std::string(kStarted) + R"(echo '{"event":"busy","with":"evaluation"}'
echo '{"event":"progress","step":1,"step_seconds":0.5}'
while :; do echo 'waiting for rank 1' >&2; sleep 0.02; done)");
  Start();
  ASSERT_TRUE(WaitForReport("progress"));
  minutes_ = 14;
  EXPECT_FALSE(WaitFor([&] { return attempt_->done(); }, std::chrono::milliseconds(300)));
  minutes_ = 15;
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_EQ(std::count(reports.begin(), reports.end(), "busy"), 0);
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
  EXPECT_EQ(ended_.cause(), "STALLED");
  EXPECT_THAT(ended_.message(), HasSubstr("said nothing for 15m while it trained and was ended"));
  EXPECT_THAT(ended_.message(), HasSubstr("waiting for rank 1"));
}

TEST_F(AttemptTest, ATrainerThatStallsWhileItStopsIsKilledAfterTheGraceAndHasNotCrashed) {
  SetTheClock();
  TrainerThatDoesNotListen();
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Milliseconds(50), /*job_goes_on=*/true);
  minutes_ = 600;
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::STOPPED);
}

TEST_F(AttemptTest, IsLostWhenTheTrainerCannotBeRun) {
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
  EXPECT_EQ(ended_.cause(), "") << "the node is at fault, not the job";
  EXPECT_THAT(ended_.message(), HasSubstr("cannot run the trainer"));
}

TEST_F(AttemptTest, FailsWhenTheServerLacksAnInput) {
  Trainer(kFinish);
  input_ = Sha256Hex("never stored");
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::FAILED);
  EXPECT_EQ(ended_.cause(), "STORAGE");
}

TEST_F(AttemptTest, StopsWithACheckpointWhenAsked) {
  Trainer(std::string(kStarted) + R"(read command; echo '{"event":"stopped","step":7}')");
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Seconds(20), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "stopped", "ended STOPPED"));
}

TEST_F(AttemptTest, KillsATrainerThatDoesNotListenAfterTheGrace) {
  TrainerThatDoesNotListen();
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Milliseconds(50), /*job_goes_on=*/true);
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::STOPPED);
  EXPECT_THAT(ended_.message(), HasSubstr("killed"));
}

// By the wall clock, setting that back would let a cancelled trainer run for as long.
TEST_F(AttemptTest, TheGraceIsOverWhateverTheWallClockIsSetTo) {
  ASSERT_NO_FATAL_FAILURE(PauseADeafTrainerForTenMinutes());
  minutes_ = 10;
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::STOPPED);
  EXPECT_THAT(ended_.message(), HasSubstr("killed"));
}

TEST_F(AttemptTest, ACancellationDoesNotWaitForTheGraceOfThePauseBeforeIt) {
  ASSERT_NO_FATAL_FAILURE(PauseADeafTrainerForTenMinutes());
  attempt_->Stop(absl::Minutes(1), /*job_goes_on=*/false);
  minutes_ = 1;
  EXPECT_TRUE(WaitForEnd());
}

TEST_F(AttemptTest, ReportsNothingOnceTheServerHasForgottenIt) {
  Trainer(std::string(kStarted) + "while :; do sleep 1; done");
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Abandon();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started"));
  EXPECT_TRUE(attempt_->settled());
}

TEST_F(AttemptTest, TakesLinesThatAreNoEventsForLog) {
  Trainer("echo oops; echo '[1]'; echo '{\"no\":\"event\"}'\n" + std::string(kFinish) +
          "echo '{\"event\":\"progress\"}'");
  Start();
  ASSERT_TRUE(WaitForEnd());
  const std::vector<std::string> reports = Reports();
  EXPECT_EQ(std::count(reports.begin(), reports.end(), "progress"), 0) << "nothing follows the last word";
  EXPECT_THAT(reports, testing::Contains("log oops"));
}

TEST_F(AttemptTest, KeepsTryingToUploadWhileTheServerIsAway) {
  Trainer(kFinish);
  Cancellation none;
  ASSERT_TRUE(cache_->Acquire({}, {{input_, 4}, {config_, 6}, {adapter_, 7}}, none).ok());
  server_.away = true;
  Start();
  ASSERT_TRUE(WaitFor([&] { return server_.uploads >= 2; }));
  EXPECT_FALSE(attempt_->done());
  server_.away = false;
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::FINISHED);
}

TEST_F(AttemptTest, SaysOnceThatTheServerIsFullAndPublishesWhenItIsNot) {
  server_.upload_error = absl::ResourceExhaustedError("the disk is full");
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitFor([&] { return server_.uploads >= 3; }));
  server_.RefuseUploads(absl::OkStatus());
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("finished", HasSubstr("the disk is full"), "stored adapter_model.safetensors",
                                     "ended FINISHED"));
}

TEST_F(AttemptTest, IsForgottenWhenANewerAttemptPublishes) {
  server_.upload_error = absl::FailedPreconditionError("not current any more");
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_TRUE(attempt_->settled());
  EXPECT_EQ(attempt_->NextReport(), std::nullopt);
}

TEST_F(AttemptTest, StoresInASharedFolderAndUploadsTheRest) {
  ASSERT_TRUE(FileArtifactStore::Open(temp_.path() + "/shared").ok());
  node_.shared_store = temp_.path() + "/shared";
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(server_.last_stored, ElementsAre(Sha256Hex("weights\n")));
  EXPECT_TRUE(fs::exists(FileArtifactStore::BlobPathIn(node_.shared_store, Sha256Hex("weights\n"))));
}

TEST_F(AttemptTest, WaitsUntilAnEarlierAttemptHasLeftTheRunFolder) {
  Trainer(kFinish);
  fs::create_directories(folder_.JobFolder("j"));
  auto earlier = std::make_optional(FileLock::TryAcquire(folder_.JobFolder("j") + "/run.lock"));
  ASSERT_TRUE(earlier->ok());
  Start();
  EXPECT_FALSE(WaitFor([&] { return attempt_->done(); }, std::chrono::milliseconds(300)));
  earlier.reset();
  EXPECT_TRUE(WaitForEnd());
}

// --- After a crash of the agent.

TEST_F(AttemptTest, IsReportedAsLostByTheNextAgent) {
  Trainer(std::string(kStarted) + "while :; do sleep 1; done");
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  StartAgain();
  EXPECT_TRUE(attempt_->done());
  EXPECT_THAT(Reports(), ElementsAre("started")) << "it does not know yet whether the server wants it";
  attempt_->GoOn("secret");
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "ended LOST"));
}

TEST_F(AttemptTest, IsPublishedByTheNextAgentIfItsTrainerHadFinished) {
  Trainer(kFinish);
  server_.upload_error = absl::UnavailableError("away");
  Start();
  ASSERT_TRUE(WaitForReport("finished"));
  attempt_->Suspend(absl::ZeroDuration());
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("finished")) << "no end is reported: the next agent goes on";
  server_.upload_error = absl::OkStatus();
  StartAgain();
  attempt_->Rewind(0);
  server_.passes.clear();
  attempt_->GoOn("of the registration");
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(server_.passes, ElementsAre(Pair(kName, "of the registration")));
  EXPECT_THAT(Reports(), ElementsAre("finished", "stored adapter_model.safetensors", "ended FINISHED"));
}

TEST_F(AttemptTest, IsNotEndedTwiceByTheNextAgent) {
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  StartAgain();
  attempt_->GoOn("secret");
  EXPECT_THAT(Reports(), ElementsAre("finished", "stored adapter_model.safetensors", "ended FINISHED"));
  attempt_->Acknowledge(3);
  EXPECT_TRUE(attempt_->settled());
}

}  // namespace
}  // namespace luthier
