// Attempts with a trainer that is a shell script: what it says and does is up to each test.
#include "worker/agent/attempt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "lib/wire/json_wire.h"
#include "tests/support/fake_server_files.h"
#include "tests/support/shell_trainer.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

namespace fs = std::filesystem;

class AttemptTest : public testing::Test {
 protected:
  AttemptTest() {
    input_ = server_.Add("rows");
    config_ = server_.Add("config");
    adapter_ = server_.Add("adapter");
  }
  void Trainer(const std::string& script) { WriteTrainer(node_.trainer, script); }
  v1::StartAttempt Order() {
    v1::StartAttempt order;
    order.set_attempt(kName);
    order.set_trainer_spec_json(R"({"protocol":1,"task":"chat"})");
    for (const auto& [role, path, sha256, bytes] : {std::tuple("base_model", "config.json", config_, 6),
                                                    {"start_adapter", "adapter_config.json", adapter_, 7},
                                                    {"train", "train.jsonl", input_, 4}}) {
      v1::AttemptInput& input = *order.add_inputs();
      input.set_role(role);
      if (input.role() == "train") {
        input.set_name("rows/train");
        input.set_weight(2.5);
      }
      v1::ModelFile& file = *input.add_files();
      file.set_path(path);
      file.set_sha256(sha256);
      file.set_size_bytes(bytes);
    }
    return order;
  }
  void Start() { attempt_ = std::make_unique<Attempt>(node_, *AttemptName::Parse(kName), Order()); }
  // What an agent that was started after this one's death finds.
  void StartAgain() {
    attempt_.reset();
    reports_.clear();
    attempt_ = std::make_unique<Attempt>(node_, *AttemptName::Parse(kName));
  }
  // Reports so far, in words.
  std::vector<std::string> Reports() {
    while (const std::optional<v1::AttemptReport> report = attempt_->NextReport()) {
      EXPECT_EQ(report->sequence(), static_cast<int64_t>(reports_.size()) + 1);
      if (report->has_trainer_event()) reports_.push_back(StructToJson(report->trainer_event())["event"]);
      if (report->has_artifact_stored()) reports_.push_back("stored " + report->artifact_stored().files(0).path());
      if (report->has_log_lines()) reports_.push_back("log " + report->log_lines().lines(0));
      if (report->has_ended()) {
        ended_ = report->ended();
        reports_.push_back("ended " + v1::AttemptEnded::Outcome_Name(ended_.outcome()));
      }
    }
    return reports_;
  }
  bool WaitForReport(const std::string& report) {
    return WaitFor([&] {
      const std::vector<std::string> reports = Reports();
      return std::find(reports.begin(), reports.end(), report) != reports.end();
    });
  }
  bool WaitForEnd() {
    return WaitFor([&] { return attempt_->done(); });
  }

  static constexpr char kName[] = "jobs/j/attempts/1";
  TempFolder temp_;
  DataFolder folder_ = *DataFolder::Open(temp_.path() + "/data");
  FakeServerFiles server_;
  std::unique_ptr<InputCache> cache_ = *InputCache::Open({.folder = folder_.CacheFolder()}, server_);
  prometheus::Registry registry_;
  AgentMetrics metrics_{registry_, "test"};
  Attempt::Node node_{.folder = folder_,
                      .cache = *cache_,
                      .artifacts = server_,
                      .metrics = metrics_,
                      .trainer = temp_.path() + "/trainer",
                      .shared_store = "",
                      .on_report = [] {},
                      .on_end = [] {}};
  std::string input_, config_, adapter_;
  std::unique_ptr<Attempt> attempt_;
  std::vector<std::string> reports_;
  v1::AttemptEnded ended_;
};

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
}

TEST_F(AttemptTest, ATrainerThatSharesItsDeviceIsToldItsPart) {
  node_.inventory.set_shares(4);
  node_.inventory.set_cpus(10);
  node_.inventory.add_gpus();
  Trainer("env > \"$5/env\"\n" + std::string(kFinish));
  v1::StartAttempt order = Order();
  order.add_gpus(6);  // the third part of GPU 1
  attempt_ = std::make_unique<Attempt>(node_, *AttemptName::Parse(kName), order);
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

TEST_F(AttemptTest, IsLostWithTheLastLinesWhenTheTrainerDies) {
  Trainer(std::string(kStarted) + "echo 'terminate called' >&2; kill -ABRT $$");
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
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

TEST_F(AttemptTest, IsLostWhenTheTrainerCannotBeRun) {
  Start();
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::LOST);
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
  attempt_->Stop(absl::Seconds(20));
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("started", "stopped", "ended STOPPED"));
}

TEST_F(AttemptTest, KillsATrainerThatDoesNotListenAfterTheGrace) {
  Trainer(std::string("trap '' TERM\n") + kStarted + "while :; do sleep 1; done");
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Milliseconds(50));
  ASSERT_TRUE(WaitForEnd());
  Reports();
  EXPECT_EQ(ended_.outcome(), v1::AttemptEnded::STOPPED);
  EXPECT_THAT(ended_.message(), HasSubstr("killed"));
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
  ASSERT_TRUE(cache_->Acquire({{input_, 4}, {config_, 6}}, none).ok());
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
  server_.upload_error = absl::OkStatus();
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
  attempt_->GoOn();
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
  attempt_->GoOn();
  ASSERT_TRUE(WaitForEnd());
  EXPECT_THAT(Reports(), ElementsAre("finished", "stored adapter_model.safetensors", "ended FINISHED"));
}

TEST_F(AttemptTest, IsNotEndedTwiceByTheNextAgent) {
  Trainer(kFinish);
  Start();
  ASSERT_TRUE(WaitForEnd());
  StartAgain();
  attempt_->GoOn();
  EXPECT_THAT(Reports(), ElementsAre("finished", "stored adapter_model.safetensors", "ended FINISHED"));
  attempt_->Acknowledge(3);
  EXPECT_TRUE(attempt_->settled());
}

}  // namespace
}  // namespace luthier
