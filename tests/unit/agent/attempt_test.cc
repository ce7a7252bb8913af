// Attempts with a trainer that is a shell script: what it says and does is up to each test.
#include "worker/agent/attempt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
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

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
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
    order.set_credential("of the order");
    order.set_trainer_spec_json(absl::StrCat(R"({"protocol":1,"task":"chat","tuning":")", tuning_, "\"}"));
    *order.mutable_checkpoint() = checkpoint_;
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
  // On one of several nodes, of which that of rank 0 leads.
  void StartInGang(int node_rank) {
    v1::StartAttempt order = Order();
    order.mutable_gang()->set_node_rank(node_rank);
    order.mutable_gang()->set_meeting("10.0.0.1:29402");
    order.mutable_gang()->set_address("10.0.0.2");
    attempt_ = std::make_unique<Attempt>(node_, *AttemptName::Parse(kName), order);
  }
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
      if (report->has_checkpoint_stored()) {
        stored_ = report->checkpoint_stored();
        reports_.push_back(absl::StrCat("checkpoint stored ", stored_.step()));
      }
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

  // From here on an attempt's waiting is measured in `minutes_`.
  void SetTheClock() {
    node_.steady_now = [this] { return absl::UnixEpoch() + absl::Minutes(minutes_.load()); };
  }

  static constexpr char kName[] = "jobs/j/attempts/1";
  std::atomic<int64_t> minutes_ = 0;
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
  std::string input_, config_, adapter_, tuning_ = "lora";
  v1::CheckpointStored checkpoint_;  // of the order
  std::unique_ptr<Attempt> attempt_;
  std::vector<std::string> reports_;
  v1::AttemptEnded ended_;
  v1::CheckpointStored stored_;  // the newest that was reported
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
  Trainer(std::string("trap '' TERM\n") + kStarted + "while :; do sleep 1; done");
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
  Trainer(std::string("trap '' TERM\n") + kStarted + "while :; do sleep 1; done");
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
  SetTheClock();
  Trainer(std::string("trap '' TERM\n") + kStarted + "while :; do sleep 1; done");
  Start();
  ASSERT_TRUE(WaitForReport("started"));
  attempt_->Stop(absl::Minutes(10), /*job_goes_on=*/true);
  EXPECT_FALSE(WaitFor([&] { return attempt_->done(); }, std::chrono::milliseconds(300)));
  minutes_ = 10;
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

// --- Checkpoints that follow their job to another node.

// A checkpoint of step N, and beside it the best weights, of step 1.
std::string WriteStep(int step) {
  return absl::StrCat("mkdir -p \"$5/checkpoints/step-", step, "\" \"$5/checkpoints/best-1\"; echo state", step,
                      " > \"$5/checkpoints/step-", step,
                      "/state.json\"; echo best > \"$5/checkpoints/best-1/weights\"\n");
}
std::string TellStep(int step) {
  return absl::StrCat(WriteStep(step), R"(echo '{"event":"checkpoint","bytes":100,"best_step":1,"step":)", step,
                      "}'\n");
}
std::string WaitForStop(int step) {
  return absl::StrCat(R"(read command; echo '{"event":"stopped","best_step":1,"step":)", step, "}'\n");
}

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
  EXPECT_FALSE(fs::exists(folder_.AttemptFolder(*AttemptName::Parse(kName)) + "/upload/4"));
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

// The order of a job that came from another node, where `step` is the newest step.
v1::CheckpointStored StoredAt(int64_t step, FakeServerFiles& server) {
  v1::CheckpointStored checkpoint;
  checkpoint.set_step(step);
  for (const auto& [path, content] :
       {std::pair(absl::StrCat("step-", step, "/state.json"), "there"), {std::string("best-1/weights"), "best"}}) {
    v1::ModelFile& file = *checkpoint.add_files();
    file.set_path(path);
    file.set_sha256(server.Add(content));
    file.set_size_bytes(static_cast<int64_t>(std::string(content).size()));
  }
  return checkpoint;
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

// --- On one of several nodes.

class GangAttemptTest : public AttemptTest {
 protected:
  const std::string own_run_ = folder_.AttemptFolder(*AttemptName::Parse(kName)) + "/run";
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

// --- After a crash of the agent.

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
