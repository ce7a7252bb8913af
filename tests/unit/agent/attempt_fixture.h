// An attempt with a trainer that is a shell script: what that says and does is up to each test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/wire/json_wire.h"
#include "prometheus/registry.h"
#include "tests/support/fake_server_files.h"
#include "tests/support/shell_trainer.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"
#include "worker/agent/attempt.h"

namespace luthier {

class AttemptTest : public testing::Test {
 protected:
  AttemptTest() {
    input_ = server_.Add("rows");
    config_ = server_.Add("config");
    adapter_ = server_.Add("adapter");
  }
  void Trainer(const std::string& script) { WriteTrainer(node_.trainer, script); }
  void TrainerThatDoesNotListen() { Trainer(std::string("trap '' TERM\n") + kStarted + "while :; do sleep 1; done"); }
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
  void Start() { attempt_ = std::make_unique<Attempt>(node_, *AttemptPath::Parse(kName), Order()); }
  // On one of several nodes, of which that of rank 0 leads.
  void StartInGang(int node_rank) {
    v1::StartAttempt order = Order();
    order.mutable_gang()->set_node_rank(node_rank);
    order.mutable_gang()->set_meeting("10.0.0.1:29402");
    order.mutable_gang()->set_address("10.0.0.2");
    attempt_ = std::make_unique<Attempt>(node_, *AttemptPath::Parse(kName), order);
  }
  // What an agent that was started after this one's death finds.
  void StartAgain() {
    attempt_.reset();
    reports_.clear();
    attempt_ = std::make_unique<Attempt>(node_, *AttemptPath::Parse(kName));
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

  // Its trainer is still there, and `minutes_` says how much of the grace is over.
  void PauseADeafTrainerForTenMinutes() {
    SetTheClock();
    TrainerThatDoesNotListen();
    Start();
    ASSERT_TRUE(WaitForReport("started"));
    attempt_->Stop(absl::Minutes(10), /*job_goes_on=*/true);
    EXPECT_FALSE(WaitFor([&] { return attempt_->done(); }, std::chrono::milliseconds(300)));
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

// A checkpoint of step N, and beside it the best weights, of step 1.
inline std::string WriteStep(int step) {
  return absl::StrCat("mkdir -p \"$5/checkpoints/step-", step, "\" \"$5/checkpoints/best-1\"; echo state", step,
                      " > \"$5/checkpoints/step-", step,
                      "/state.json\"; echo best > \"$5/checkpoints/best-1/weights\"\n");
}
// The same, and that the trainer tells of it.
inline std::string TellStep(int step) {
  return absl::StrCat(WriteStep(step), R"(echo '{"event":"checkpoint","bytes":100,"best_step":1,"step":)", step,
                      "}'\n");
}
// What a trainer does that is asked to stop behind step N.
inline std::string WaitForStop(int step) {
  return absl::StrCat(R"(read command; echo '{"event":"stopped","best_step":1,"step":)", step, "}'\n");
}

// The checkpoint in the order of a job that came from another node, where `step` is the newest step.
inline v1::CheckpointStored StoredAt(int64_t step, FakeServerFiles& server) {
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

}  // namespace luthier
