// Killed, stopped and started again: a run goes on from its newest whole checkpoint, and ends with the same bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/crash_points.h"
#include "tests/support/power_loss.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct KilledRun {
  const char* name;
  const char* changes;  // of LoraSpec, as JSON
  const char* weights;
};

class KillTest : public TrainerProgramTest, public ::testing::WithParamInterface<KilledRun> {
 protected:
  // Ends by SIGKILL, `when` the next checkpoint gets its name.
  static ProgramResult TrainKilled(const std::string& spec, const std::string& out, const std::string& when) {
    return RunProgram({"/usr/bin/env", "KILL_AT_RENAME=" + when, "KILL_AT_RENAME_TO=/checkpoints/step-",
                       std::string("LD_PRELOAD=") + LUTHIER_KILL_AT_RENAME, LUTHIER_TRAINER_PROGRAM, "run", "--spec",
                       spec, "--out", out});
  }
};

// The promise behind every checkpoint: killed at any step, just before and just after its checkpoint is there, and
// started again, the run ends with the same bytes.
TEST_P(KillTest, KilledAtEveryStepItEndsWithBitIdenticalWeights) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 5;
  spec["evaluation"]["every"] = 2;
  spec.merge_patch(json::parse(GetParam().changes));
  const ProgramResult whole = Train(spec, Out("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  const std::string expected = ReadText(Out("whole") + GetParam().weights);
  ASSERT_FALSE(expected.empty());

  WriteText(Out("spec.json"), spec.dump());
  const auto resumed_step = [](const ProgramResult& run) {
    return (*Find(Events(run.output), "started"))["resumed_step"];
  };
  for (int step = 1; step < 5; ++step) {
    for (const char* when : {"before", "after"}) {
      const ProgramResult killed = TrainKilled(Out("spec.json"), Out("killed"), when);
      ASSERT_EQ(killed.signal, SIGKILL) << step << " " << when << killed.output;
      EXPECT_EQ(resumed_step(killed), step - 1) << when;
      EXPECT_EQ(std::filesystem::exists(Out("killed") + "/checkpoints/step-" + std::to_string(step)),
                when == std::string("after"));
    }
  }
  const ProgramResult last = Train(spec, Out("killed"));
  ASSERT_EQ(last.exit_code, 0) << last.output;
  EXPECT_EQ(resumed_step(last), 4);
  EXPECT_EQ(ReadText(Out("killed") + GetParam().weights), expected);
  // What was chosen on the way is chosen again.
  EXPECT_EQ(Events(last.output).back()["published_step"], Events(whole.output).back()["published_step"]);
}

// At any write, flush or rename, and then with what a power loss leaves of its folder: it goes on from a whole
// checkpoint, or begins again, and ends with the same bytes.
TEST_F(TrainerProgramTest, KilledAtAnyWriteOrWithoutPowerItEndsWithBitIdenticalWeights) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 3;
  spec["evaluation"]["every"] = 2;
  const std::string weights = "/adapter/adapter_model.safetensors";
  ASSERT_EQ(Train(spec, Out("whole")).exit_code, 0);
  const std::string expected = ReadText(Out("whole") + weights);
  ASSERT_FALSE(expected.empty());

  WriteText(Out("spec.json"), spec.dump());
  CrashPoints points(23);
  for (bool survived = false; !survived;) {
    const int point = points.Next();
    for (const bool loses_power : {false, true}) {
      SCOPED_TRACE(points.Trace(point) + (loses_power ? " without power" : ""));
      const TempFolder folder;
      const std::string out = folder.path() + "/out", kept = folder.path() + "/kept";
      std::filesystem::create_directory(kept);
      const ProgramResult killed = RunProgram(
          {"/usr/bin/env", "LD_PRELOAD=" LUTHIER_FAULTY_DISK, "FAULTY_DISK_KILLS_AT=" + std::to_string(point),
           "FAULTY_DISK_KEEPS=" + kept, LUTHIER_TRAINER_PROGRAM, "run", "--spec", Out("spec.json"), "--out", out});
      survived = killed.exit_code == 0;
      if (survived) break;
      ASSERT_EQ(killed.signal, SIGKILL) << killed.output;
      if (loses_power) PowerLoss(kept, 0).LeaveOf(out);
      const ProgramResult again = Train(spec, out);
      ASSERT_EQ(again.exit_code, 0) << again.output;
      EXPECT_TRUE(ReadText(out + weights) == expected);
    }
  }
  EXPECT_GT(points.all(), 30);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, KillTest,
    ::testing::Values(KilledRun{"Lora", "{}", "/adapter/adapter_model.safetensors"},
                      KilledRun{"Full", R"({"tuning": "full", "lora": null})", "/model/model.safetensors"},
                      KilledRun{"Bf16", R"({"training": {"precision": "bf16"}})", "/adapter/adapter_model.safetensors"},
                      KilledRun{"LayersComputedAgainWithDropout",
                                R"({"lora": {"dropout": 0.3}, "training": {"activation_checkpointing": true}})",
                                "/adapter/adapter_model.safetensors"}),
    [](const auto& info) { return info.param.name; });

TEST_F(TrainerProgramTest, ADamagedCheckpointFallsBackToTheOneBeforeWithAWarning) {
  ASSERT_EQ(Train(LoraSpec(), Out("whole")).exit_code, 0);
  Train(LoraSpec(), Out("damaged"), [&](const std::string& output, pid_t pid) {
    if (output.find("step-4") != std::string::npos) kill(pid, SIGKILL);
  });
  int64_t newest = 0;
  for (const auto& entry : std::filesystem::directory_iterator(Out("damaged") + "/checkpoints")) {
    const std::string name = entry.path().filename();
    if (name.rfind("step-", 0) == 0) newest = std::max<int64_t>(newest, std::stoll(name.substr(5)));
  }
  ASSERT_GE(newest, 4);
  std::fstream file(Out("damaged") + "/checkpoints/step-" + std::to_string(newest) + "/weights.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-3, std::ios::end);
  file.put('\x55');
  file.close();

  const ProgramResult run = Train(LoraSpec(), Out("damaged"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> events = Events(run.output);
  ASSERT_NE(Find(events, "warning"), nullptr);
  EXPECT_THAT((*Find(events, "warning"))["message"].get<std::string>(), HasSubstr("is damaged"));
  EXPECT_EQ((*Find(events, "started"))["resumed_step"], newest - 1);
  for (const auto& entry : std::filesystem::directory_iterator(Out("damaged") + "/checkpoints")) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(name.starts_with("step-") || name.starts_with("best-")) << entry << " is left behind";
  }
  EXPECT_EQ(ReadText(Out("damaged") + "/adapter/adapter_model.safetensors"),
            ReadText(Out("whole") + "/adapter/adapter_model.safetensors"));
}

// The comparison of base and tuned model must survive a crash.
TEST_F(TrainerProgramTest, AResumedRunStillReportsTheBaseModelsScore) {
  json spec = LoraSpec();
  spec["dataset"]["test"] = shared_->path() + "/validation.jsonl";
  Train(spec, Out("run"), [&](const std::string& output, pid_t pid) {
    if (output.find("step-3") != std::string::npos) kill(pid, SIGKILL);
  });
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> events = Events(run.output);
  ASSERT_GT((*Find(events, "started"))["resumed_step"], 0);
  std::set<std::string> reported;
  for (const json& evaluation : events.back()["evaluations"]) {
    reported.insert(evaluation["split"].get<std::string>() + "/" + evaluation["model"].get<std::string>());
  }
  EXPECT_THAT(reported, ::testing::IsSupersetOf({"test/base", "test/tuned"}));
}

TEST_F(TrainerProgramTest, ACheckpointOfAnotherSpecIsRefused) {
  Train(LoraSpec(), Out("run"), [&](const std::string& output, pid_t pid) {
    if (output.find("step-2") != std::string::npos) kill(pid, SIGKILL);
  });
  json other = LoraSpec();
  other["training"]["seed"] = 7;
  const ProgramResult run = Train(other, Out("run"));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(Events(run.output).back()["cause"], "CONFIG");
  EXPECT_THAT(run.output, HasSubstr("another spec"));
}

// A base of the same shape and size is another base all the same; so are other rows to choose the best weights by.
TEST_F(TrainerProgramTest, ACheckpointOfAnotherBaseOrMetricIsRefused) {
  std::filesystem::copy(base_, Out("base"));
  json spec = LoraSpec();
  spec["base_model"] = Out("base");
  Train(spec, Out("run"), [&](const std::string& output, pid_t pid) {
    if (output.find("step-2") != std::string::npos) kill(pid, SIGKILL);
  });
  json other = spec;
  other["evaluation"]["metric"] = "loss";
  EXPECT_THAT(Train(other, Out("run")).output, HasSubstr("another spec"));
  std::fstream weights(Out("base") + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  weights.seekg(-1000, std::ios::end);
  const int byte = weights.get();
  weights.seekp(-1000, std::ios::end);
  weights.put(static_cast<char>(byte ^ 1));
  weights.close();
  const ProgramResult run = Train(spec, Out("run"));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.output, HasSubstr("another spec, base model or rows"));
}

TEST_F(TrainerProgramTest, SigtermWritesACheckpointAndSaysStopped) {
  const ProgramResult run = Train(LoraSpec(), Out("run"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"progress\"") != std::string::npos) kill(pid, SIGTERM);
  });
  EXPECT_EQ(run.exit_code, 0);
  const json last = Events(run.output).back();
  ASSERT_EQ(last["event"], "stopped") << last;
  EXPECT_TRUE(std::filesystem::exists(last["path"].get<std::string>() + "/state.json"));
}

// Generating answers takes minutes with a real model; a preempted job must not wait for it.
TEST_F(TrainerProgramTest, AStopEndsARunningEvaluationWhichIsDoneWhenTheRunGoesOn) {
  json spec = LoraSpec();
  WriteText(folder_.path() + "/test.jsonl", Rows(200));
  spec["dataset"] = {{"train", shared_->path() + "/train.jsonl"}, {"test", folder_.path() + "/test.jsonl"}};
  spec["training"]["max_steps"] = 1;
  spec["evaluation"] = {{"max_new_tokens", 200}};
  const ProgramResult stopped = Train(spec, Out("run"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"progress\"") != std::string::npos) kill(pid, SIGTERM);
  });
  ASSERT_EQ(Events(stopped.output).back()["event"], "stopped") << stopped.output;
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ((*Find(Events(run.output), "started"))["resumed_step"], 1);
  EXPECT_EQ(Events(run.output).back()["evaluations"].size(), 2u);
}

}  // namespace
}  // namespace luthier
