// luthier-trainer as a user runs it: events, resume after being killed at every step, damaged checkpoints, bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/crash_points.h"
#include "tests/support/power_loss.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<json> Events(const std::string& output) {
  std::vector<json> events;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) events.push_back(json::parse(line));
  return events;
}

const json* Find(const std::vector<json>& events, const std::string& name) {
  for (const json& event : events) {
    if (event["event"] == name) return &event;
  }
  return nullptr;
}

// One folder with a base model of random weights (made by the program itself), a small dataset and specs.
class TrainerProgramTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempFolder();
    WriteTinyBase(shared_->path() + "/empty");
    WriteText(shared_->path() + "/train.jsonl", Rows(24));
    WriteText(shared_->path() + "/validation.jsonl", Rows(6));
    json spec = {{"protocol", 1},    {"base_model", shared_->path() + "/empty"},
                 {"init", "random"}, {"dataset", {{"train", shared_->path() + "/train.jsonl"}}},
                 {"tuning", "full"}, {"training", {{"max_steps", 2}, {"loss_on", "all"}}}};
    const auto made = Train(spec, shared_->path() + "/made");
    ASSERT_EQ(made.exit_code, 0) << made.output;
    base_ = shared_->path() + "/made/model";
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }

  static std::string Rows(int count) {
    std::string rows;
    for (int i = 0; i < count; ++i) rows += ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
    return rows;
  }

  // A LoRA job of 9 steps with dropout and a checkpoint after every step.
  static json LoraSpec() {
    return {{"protocol", 1},
            {"attempt", "jobs/j/attempts/1"},
            {"base_model", base_},
            {"dataset",
             {{"train", shared_->path() + "/train.jsonl"}, {"validation", shared_->path() + "/validation.jsonl"}}},
            {"task", "classification"},
            {"lora", {{"rank", 4}, {"dropout", 0.1}}},
            {"training", {{"epochs", 3}, {"batch_tokens", 400}, {"micro_batch_tokens", 200}}},
            {"evaluation", {{"every", 4}, {"max_new_tokens", 4}}},
            {"checkpoint", {{"every", 1}}},
            {"resources", {{"threads", 2}}}};
  }

  static ProgramResult Train(const json& spec, const std::string& out,
                             const std::function<void(const std::string&, pid_t)>& on_output = {}) {
    const std::string path = out + ".spec.json";
    WriteText(path, spec.dump());
    return RunProgram({LUTHIER_TRAINER_PROGRAM, "run", "--spec", path, "--out", out}, on_output);
  }

  std::string Out(const std::string& name) const { return folder_.path() + "/" + name; }

  TempFolder folder_;
  inline static TempFolder* shared_ = nullptr;
  inline static std::string base_;
};

TEST_F(TrainerProgramTest, TellsStartProgressEvaluationCheckpointAndFinish) {
  const ProgramResult run = Train(LoraSpec(), Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> events = Events(run.output);
  for (const json& event : events) EXPECT_EQ(event["attempt"], "jobs/j/attempts/1");
  const json& started = *Find(events, "started");
  EXPECT_EQ(started["resumed_step"], 0);
  EXPECT_GT(started["trainable_parameters"], 0);
  for (const json& value : started["resolved"]) EXPECT_NE(value["reason"], "") << value;
  ASSERT_NE(Find(events, "progress"), nullptr);
  ASSERT_EQ(started["dataset"].size(), 2u);
  EXPECT_EQ(started["dataset"][0]["file"], "train.jsonl");
  EXPECT_EQ(started["dataset"][0]["rows"], 24);
  EXPECT_EQ(started["dataset"][0]["truncated"], 0);
  EXPECT_EQ(started["dataset"][1]["part"], "validation");
  ASSERT_NE(Find(events, "evaluation"), nullptr);
  EXPECT_EQ((*Find(events, "evaluation"))["scored_rows"], 6);
  ASSERT_NE(Find(events, "checkpoint"), nullptr);
  const json& finished = events.back();
  EXPECT_EQ(finished["event"], "finished");
  EXPECT_EQ(finished["step"], started["total_steps"]);
  EXPECT_EQ(finished["artifact"]["kind"], "adapter");
  EXPECT_EQ(finished["dataset"], started["dataset"]);
  EXPECT_TRUE(std::filesystem::exists(Out("run") + "/adapter/adapter_model.safetensors"));
}

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

TEST_F(TrainerProgramTest, LossFallsWhenItLearns) {
  json spec = LoraSpec();
  spec["tuning"] = "full";
  spec.erase("lora");
  spec["training"]["epochs"] = 40;
  spec["training"]["learning_rate"] = 3e-3;
  spec["checkpoint"]["every"] = 1000;
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0);
  const std::vector<json> events = Events(run.output);
  EXPECT_LT(events.back()["train_loss"].get<double>(), 0.5 * (*Find(events, "progress"))["loss"].get<double>());
}

// The schedule counts optimizer steps: of 9, each of several micro-batches, the last learns with a ninth of the peak.
TEST_F(TrainerProgramTest, TheLearningRateFollowsOptimizerSteps) {
  json spec = LoraSpec();
  spec["training"]["learning_rate"] = 0.01;
  spec["training"]["schedule"] = "linear";
  spec["training"]["warmup_ratio"] = 0;
  const std::vector<json> events = Events(Train(spec, Out("run")).output);
  json last;
  for (const json& event : events) {
    if (event["event"] == "progress") last = event;
  }
  ASSERT_EQ(last["step"], last["total_steps"]);
  EXPECT_NEAR(last["learning_rate"].get<double>(), 0.01 / last["total_steps"].get<double>(), 1e-9);
}

// Every evaluation is told, so the test can choose for itself. The more is learned of the training rows, the worse it
// gets.
TEST_F(TrainerProgramTest, TheWeightsThatWereBestOnTheValidationPartArePublished) {
  json spec = LoraSpec();
  WriteText(Out("validation.jsonl"), ChatLine("row 1", "QQQQ") + ChatLine("row 2", "QQQQ"));
  spec["dataset"]["validation"] = Out("validation.jsonl");
  spec["evaluation"] = {{"every", 1}, {"metric", "loss"}};
  spec["training"]["learning_rate"] = 0.03;
  spec["training"]["schedule"] = "constant";
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> events = Events(run.output);
  int64_t best_step = 0;
  double best = INFINITY;
  for (const json& event : events) {
    if (event["event"] != "evaluation") continue;
    EXPECT_EQ(event["best"], event["loss"] < best) << "so far";
    if (event["loss"] >= best) continue;
    best = event["loss"];
    best_step = event["step"];
  }
  const json& finished = events.back();
  EXPECT_EQ(finished["published_step"], best_step);
  EXPECT_LT(best_step, finished["step"]) << "the last weights were the best: this run proves nothing";
  const std::string scored =
      RunProgram({LUTHIER_TRAINER_PROGRAM, "evaluate", "--base", base_, "--adapter", Out("run") + "/adapter", "--data",
                  Out("validation.jsonl"), "--task", "classification"})
          .output;
  EXPECT_NEAR(json::parse(scored)["loss"].get<double>(), best, 1e-4 * best);

  spec["checkpoint"]["publish"] = "last";
  EXPECT_EQ(Events(Train(spec, Out("last")).output).back()["published_step"], finished["step"]);
}

TEST_F(TrainerProgramTest, RowsOfAParquetFileTrainAsTheLinesWithTheSameRows) {
  std::vector<std::vector<double>> losses;
  for (const char* name : {"completion.jsonl", "completion.parquet"}) {
    json spec = LoraSpec();
    spec["dataset"] = {{"train", std::filesystem::absolute("tests/fixtures/parquet/").string() + name}};
    spec.erase("task");
    spec["training"]["max_steps"] = 2;
    const ProgramResult run = Train(spec, Out(name));
    ASSERT_EQ(run.exit_code, 0) << run.output;
    losses.emplace_back();
    for (const json& event : Events(run.output)) {
      if (event["event"] == "progress") losses.back().push_back(event["loss"].get<double>());
    }
  }
  EXPECT_FALSE(losses[0].empty());
  EXPECT_EQ(losses[1], losses[0]);
}

TEST_F(TrainerProgramTest, WhatAnEvaluationCannotTellIsWarnedAbout) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 1;
  spec["task"] = "extraction";
  spec["evaluation"]["metric"] = "json_equality";  // answers are `even` and `odd`
  std::filesystem::copy(shared_->path() + "/train.jsonl", Out("same.jsonl"));
  spec["dataset"]["validation"] = Out("same.jsonl");
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  std::string warnings;
  const std::vector<json> events = Events(run.output);
  for (const json& event : events) {
    if (event["event"] == "warning") warnings += event["message"].get<std::string>() + "\n";
  }
  EXPECT_THAT(warnings, HasSubstr("has the rows of the training file"));
  EXPECT_THAT(warnings, HasSubstr("evaluation.metric: json_equality needs answers in JSON"));
  EXPECT_THAT(warnings, HasSubstr("exact_match chooses the best weights"));
}

TEST_F(TrainerProgramTest, PatienceEndsARunThatGainsNothing) {
  json spec = LoraSpec();
  WriteText(Out("validation.jsonl"), ChatLine("row 1", "QQQQ") + ChatLine("row 2", "QQQQ"));
  spec["dataset"]["validation"] = Out("validation.jsonl");
  spec["evaluation"] = {{"every", 1}, {"metric", "loss"}, {"patience", 2}};
  spec["training"]["learning_rate"] = 0.03;
  spec["training"]["schedule"] = "constant";
  spec["training"]["epochs"] = 20;
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> events = Events(run.output);
  EXPECT_EQ(events.back()["stop_reason"], "NO_GAIN");
  EXPECT_LT(events.back()["step"], (*Find(events, "started"))["total_steps"]);
  EXPECT_EQ(events.back()["published_step"], events.back()["step"].get<int64_t>() - 2);
}

TEST_F(TrainerProgramTest, Bf16AndLayersThatAreComputedAgainTrainToo) {
  for (const char* tuning : {"lora", "full"}) {
    json spec = LoraSpec();
    spec["tuning"] = tuning;
    if (spec["tuning"] == "full") spec.erase("lora");
    spec["training"]["precision"] = "bf16";
    spec["training"]["activation_checkpointing"] = true;
    const ProgramResult run = Train(spec, Out(tuning));
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const std::vector<json> events = Events(run.output);
    EXPECT_LT(events.back()["train_loss"].get<double>(), (*Find(events, "progress"))["loss"].get<double>());
  }
}

// A result that is asked with another template than it was trained with answers badly, and nobody sees why.
TEST_F(TrainerProgramTest, AJobsOwnTemplateGoesWithItsResult) {
  const std::string source =
      "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('this template has no system message') }}"
      "{% endif %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
      "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";
  const std::string exported = "{# template_date: 2026-11-25 #}\n" + source;
  WriteText(Out("own.jinja"), source);
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 1;
  spec["chat_template"] = Out("own.jinja");
  spec["template_date"] = "2026-11-25";
  const ProgramResult run = Train(spec, Out("lora"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ(ReadText(Out("lora") + "/adapter/chat_template.jinja"), exported);
  const auto ask = [&](const std::vector<std::string>& more) {
    std::vector<std::string> command = {
        LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_, "--system", "s", "--prompt", "q",
        "--max-new-tokens",      "1"};
    command.insert(command.end(), more.begin(), more.end());
    return RunCaptured(command);
  };
  EXPECT_EQ(ask({}).exit_code, 0);
  EXPECT_THAT(ask({"--adapter", Out("lora") + "/adapter"}).err, HasSubstr("this template has no system message"));
  const CapturedResult merged = RunCaptured({LUTHIER_TRAINER_PROGRAM, "export", "--base", base_, "--adapter",
                                             Out("lora") + "/adapter", "--format", "merged", "--out", Out("merged")});
  ASSERT_EQ(merged.exit_code, 0) << merged.err;
  EXPECT_EQ(ReadText(Out("merged") + "/chat_template.jinja"), exported);
  spec["tuning"] = "full";
  spec.erase("lora");
  ASSERT_EQ(Train(spec, Out("full")).exit_code, 0);
  EXPECT_EQ(ReadText(Out("full") + "/model/chat_template.jinja"), exported);
  EXPECT_EQ(json::parse(ReadText(Out("full") + "/model/tokenizer_config.json"))["chat_template"], exported);
}

TEST_F(TrainerProgramTest, TheRowsWithTheHighestLossesAreNamedByFileAndLine) {
  ASSERT_EQ(Train(LoraSpec(), Out("run")).exit_code, 0);
  const json report = json::parse(ReadText(Out("run") + "/report.json"));
  ASSERT_EQ(report["worst_rows"].size(), 5u);
  EXPECT_EQ(report["worst_rows"][0]["file"], "train.jsonl");
  std::istringstream lines(ReadText(Out("run") + "/row_losses.jsonl"));
  std::set<int64_t> rows;
  double last = INFINITY;
  for (std::string line; std::getline(lines, line);) {
    const json row = json::parse(line);
    rows.insert(row["line"].get<int64_t>());
    EXPECT_LE(row["last_loss"].get<double>(), last);
    last = row["last_loss"];
  }
  EXPECT_EQ(rows.size(), 24u);
  EXPECT_EQ(*rows.begin(), 1);
  EXPECT_EQ(*rows.rbegin(), 24);
}

// The plan is the run's own: the same values and steps, without weights being read.
TEST_F(TrainerProgramTest, PlanSaysBeforehandWhatARunDoes) {
  WriteText(Out("spec.json"), LoraSpec().dump());
  const auto plan = [&](const std::vector<std::string>& more) {
    std::vector<std::string> command = {LUTHIER_TRAINER_PROGRAM, "plan", "--spec", Out("spec.json")};
    command.insert(command.end(), more.begin(), more.end());
    return RunCaptured(command);
  };
  const CapturedResult planned = plan({"--output", "json"});
  ASSERT_EQ(planned.exit_code, 0) << planned.err;
  const json report = json::parse(planned.out);
  const std::vector<json> events = Events(Train(LoraSpec(), Out("run")).output);
  const json& started = *Find(events, "started");
  EXPECT_EQ(report["total_steps"], started["total_steps"]);
  EXPECT_EQ(report["resolved"], started["resolved"]);
  EXPECT_EQ(report["rows"], started["train_rows"]);
  EXPECT_EQ(report["tokens"], started["train_tokens"]);
  EXPECT_LE(report["largest_micro_batch"], 200);
  EXPECT_GT(report["time"]["seconds"], 0);

  const json measured = json::parse(plan({"--output", "json", "--measure"}).out);
  EXPECT_THAT(measured["time"]["reason"].get<std::string>(), HasSubstr("2 steps were timed here"));
  const double peak = measured["memory_bytes"]["measured"], estimate = measured["memory_bytes"]["total"];
  EXPECT_GT(peak, 0.5 * estimate);
  EXPECT_LT(peak, 2 * estimate);
  const std::string text = plan({}).out;
  for (const char* part : {"memory   about", "rows     24 of", "steps    ", "time     about", "lora.rank", "given"})
    EXPECT_THAT(text, HasSubstr(part));

  json bad = LoraSpec();
  bad["lora"]["rank"] = 0;
  WriteText(Out("spec.json"), bad.dump());
  const CapturedResult refused = plan({});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("lora.rank"));
}

// `export --out BASE` once deleted the base's weights.
TEST_F(TrainerProgramTest, ExportAndRunNeverTouchWhatTheyRead) {
  ASSERT_EQ(Train(LoraSpec(), Out("run")).exit_code, 0);
  std::filesystem::copy(base_, Out("base"));
  const std::string adapter = Out("run") + "/adapter", weights = ReadText(Out("base") + "/model.safetensors");
  const auto export_to = [&](const std::string& format, const std::string& place) {
    return RunCaptured({LUTHIER_TRAINER_PROGRAM, "export", "--base", Out("base"), "--adapter", adapter, "--format",
                        format, "--out", place});
  };
  std::filesystem::create_directory(Out("notes"));
  WriteText(Out("notes") + "/thesis.txt", "mine");
  for (const std::string& place :
       {Out("base"), Out("base") + "/merged", folder_.path(), adapter, Out("run"), Out("notes")}) {
    const CapturedResult refused = export_to("merged", place);
    EXPECT_EQ(refused.exit_code, 1) << place;
    EXPECT_THAT(refused.err, HasSubstr("--out: " + place)) << place;
  }
  EXPECT_EQ(export_to("gguf", Out("base") + "/model.safetensors").exit_code, 1);
  EXPECT_EQ(export_to("gguf", Out("notes") + "/thesis.txt").exit_code, 1);
  EXPECT_EQ(ReadText(Out("base") + "/model.safetensors"), weights);
  EXPECT_EQ(ReadText(Out("notes") + "/thesis.txt"), "mine");
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(export_to("merged", Out("merged")).exit_code, 0);
    EXPECT_EQ(export_to("gguf", Out("adapter.gguf")).exit_code, 0);
  }

  json spec = LoraSpec();
  spec["base_model"] = Out("base");
  for (const std::string& out : {Out("base"), Out("base") + "/run"}) {
    WriteText(Out("spec.json"), spec.dump());
    const ProgramResult refused =
        RunProgram({LUTHIER_TRAINER_PROGRAM, "run", "--spec", Out("spec.json"), "--out", out});
    EXPECT_EQ(refused.exit_code, 1);
    const std::vector<json> events = Events(refused.output);
    EXPECT_EQ(events.back()["cause"], "CONFIG");
    EXPECT_EQ(events.back()["attempt"], "jobs/j/attempts/1");
    EXPECT_THAT(events.back()["message"].get<std::string>(), HasSubstr("base_model"));
  }
  WriteText(Out("notes") + "/report.json", "mine");
  EXPECT_EQ(Train(spec, Out("notes")).exit_code, 1);
  EXPECT_EQ(ReadText(Out("notes") + "/report.json"), "mine");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(Out("base")), {}),
            std::distance(std::filesystem::directory_iterator(base_), {}));
}

// Several tasks on one base: which adapter answers is said for all questions, or for each.
TEST_F(TrainerProgramTest, GenerateChoosesAdaptersAndStopsAtStrings) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 2;
  ASSERT_EQ(Train(spec, Out("run")).exit_code, 0);
  const std::string adapter = Out("run") + "/adapter";
  const auto generate = [&](const std::vector<std::string>& more) {
    std::vector<std::string> command = {
        LUTHIER_TRAINER_PROGRAM, "generate",  "--base",       base_,           "--adapter",
        "a=" + adapter,          "--adapter", "b=" + adapter, "--temperature", "1",
        "--max-new-tokens",      "24",        "-o",           "json"};
    command.insert(command.end(), more.begin(), more.end());
    return RunCaptured(command);
  };
  const std::vector<json> both = Events(generate({"--prompt", "row 1"}).out);
  ASSERT_EQ(both.size(), 2u);
  const std::vector<json> one = Events(generate({"--prompt", "row 1", "--use", "b"}).out);
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0]["model"], "b");
  EXPECT_EQ(one[0]["answer"], both[1]["answer"]);
  EXPECT_THAT(generate({"--prompt", "row 1", "--use", "c"}).err,
              HasSubstr("'c' is not loaded; give one of base, a, b"));

  WriteText(Out("questions"), R"({"prompt": "row 1", "adapter": "b"}
{"prompt": "row 1", "adapter": "base"}
{"prompt": "row 2"}
{"prompt": "row 1", "adaptor": "b"}
)");
  const CapturedResult lines =
      RunCaptured({"/bin/sh", "-c",
                   std::string(LUTHIER_TRAINER_PROGRAM) + " generate --base " + base_ + " --adapter a=" + adapter +
                       " --adapter b=" + adapter +
                       " --temperature 1 --max-new-tokens 24 -o json --use a --input json < " + Out("questions")});
  const std::vector<json> answers = Events(lines.out);
  ASSERT_EQ(answers.size(), 3u) << lines.err;
  EXPECT_EQ(answers[0], one[0]);
  EXPECT_EQ(answers[1]["model"], "base");
  EXPECT_EQ(answers[2]["model"], "a");
  EXPECT_THAT(lines.err, HasSubstr("line 4"));
  EXPECT_THAT(lines.err, HasSubstr("adaptor"));

  const std::string whole = one[0]["answer"];
  ASSERT_GT(whole.size(), 8u);
  const std::string stop = whole.substr(3, 4);  // lies across tokens, which are bytes here
  ASSERT_EQ(stop.find('\0'), std::string::npos);
  const std::vector<json> stopped =
      Events(generate({"--prompt", "row 1", "--use", "b", "--stop", "never", "--stop", stop}).out);
  EXPECT_EQ(stopped[0]["answer"], whole.substr(0, whole.find(stop)));
}

TEST_F(TrainerProgramTest, GenerateRefusesFlagsByNameAndValueWithARemedy) {
  const std::pair<const char*, const char*> flags[] = {
      {"--top-p", "0"},  {"--top-p", "1.5"}, {"--temperature", "nan"},  {"--temperature", "-1"},
      {"--top-k", "-5"}, {"--seed", "-1"},   {"--max-new-tokens", "0"}, {"--repetition-penalty", "0"},
      {"--stop", ""}};
  for (const auto& [flag, value] : flags) {
    const CapturedResult refused =
        RunCaptured({LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_, "--prompt", "x", flag, value});
    EXPECT_EQ(refused.exit_code, 2) << flag << " " << value;
    EXPECT_THAT(refused.err, HasSubstr(std::string(flag) + ": " + value)) << flag << " " << value;
    EXPECT_THAT(refused.err, HasSubstr("; give")) << flag << " " << value;
  }
  for (const auto& [first, second] : {std::pair("x", "y"), std::pair("a=x", "a=y"), std::pair("b=x", "base=y")}) {
    const CapturedResult refused = RunCaptured({LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_, "--prompt", "x",
                                                "--adapter", first, "--adapter", second});
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_THAT(refused.err, HasSubstr(std::string("--adapter: ") + second)) << first;
    EXPECT_THAT(refused.err, HasSubstr("NAME=FOLDER")) << first;
  }
}

double ChildrenCpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A user who waits sees the first step within 2 s, with the shipped model and an example of its size. The start is
// nearly all in one thread, so its CPU time is what an idle machine takes; wall time would measure the neighbours of
// this test.
TEST_F(TrainerProgramTest, TheShippedModelTakesItsFirstStepWithinTwoSeconds) {
  const std::string base = "examples/base/luthier-tiny", task = "examples/tasks/classification";
  const bool has_weights = std::filesystem::exists(base + "/model.safetensors");
  const json spec = {
      {"protocol", 1},
      {"base_model", base},
      {"init", has_weights ? "pretrained" : "random"},
      {"task", "classification"},
      {"dataset",
       {{"train", task + "/train.jsonl"}, {"validation", task + "/validation.jsonl"}, {"test", task + "/test.jsonl"}}}};
  const double before = ChildrenCpuSeconds();
  const ProgramResult run = Train(spec, Out("run"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"progress\"") != std::string::npos) kill(pid, SIGKILL);
  });
  const double seconds = ChildrenCpuSeconds() - before;
  ASSERT_NE(Find(Events(run.output), "progress"), nullptr) << run.output;
  EXPECT_LT(seconds, 2);
}

// The numbers of an fp32 safetensors file.
std::vector<float> Numbers(const std::string& path) {
  const std::string bytes = ReadText(path);
  uint64_t header = 0;
  if (bytes.size() < sizeof header) return {};
  std::memcpy(&header, bytes.data(), sizeof header);
  std::vector<float> numbers((bytes.size() - sizeof header - header) / sizeof(float));
  std::memcpy(numbers.data(), bytes.data() + sizeof header + header, numbers.size() * sizeof(float));
  return numbers;
}

// Processes that a running one has started and that are not over.
std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string text;
    if (!std::getline(file, text)) continue;
    std::istringstream fields(text.substr(text.rfind(')') + 1));
    char state = 0;
    pid_t parent_of = 0;
    fields >> state >> parent_of;
    if (parent_of == parent && state != 'Z') children.push_back(std::stoi(entry.path().filename()));
  }
  std::sort(children.begin(), children.end());
  return children;
}

bool IsOver(pid_t pid) {
  const std::string stat = ReadText("/proc/" + std::to_string(pid) + "/stat");
  return stat.empty() || stat.substr(stat.rfind(')') + 2, 1) == "Z";
}

class RanksTest : public TrainerProgramTest {
 protected:
  static json SpecOf(int devices, double dropout) {
    json spec = LoraSpec();
    spec["lora"]["dropout"] = dropout;
    spec["resources"] = {{"devices", devices}, {"threads", 2}};
    return spec;
  }
};

// The same batches, mean and schedule, so the same run up to the rounding of sums in another order.
TEST_F(RanksTest, TwoRanksTrainWhatOneDoes) {
  const std::vector<json> one = Events(Train(SpecOf(1, 0), Out("one")).output);
  const ProgramResult run = Train(SpecOf(2, 0), Out("two"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const std::vector<json> two = Events(run.output);
  const json& started = *Find(two, "started");
  EXPECT_EQ(started["devices"], 2);
  EXPECT_EQ(started["total_steps"], (*Find(one, "started"))["total_steps"]);
  const auto values_of = [](const std::vector<json>& events, const std::string& event, const char* field) {
    std::vector<double> values;
    for (const json& found : events) {
      if (found["event"] == event &&
          (event != "progress" || found["step"] == 1 || found["step"] == found["total_steps"]))
        values.push_back(found[field].get<double>());
    }
    return values;
  };
  const auto near = [](const std::vector<double>& expected) {
    return ::testing::Pointwise(::testing::DoubleNear(1e-4), expected);
  };
  for (const char* field : {"loss", "learning_rate", "grad_norm", "tokens"})
    EXPECT_THAT(values_of(two, "progress", field), near(values_of(one, "progress", field))) << field;
  EXPECT_THAT(values_of(two, "evaluation", "loss"), near(values_of(one, "evaluation", "loss")));
  EXPECT_EQ(values_of(two, "started", "total_steps").size(), 1u) << "more than one rank reports";
  EXPECT_EQ(values_of(two, "finished", "step").size(), 1u);
  EXPECT_EQ(two.back()["event"], "finished");
  EXPECT_EQ(ReadText(Out("two") + "/row_losses.jsonl").empty(), false);

  const std::vector<float> expected = Numbers(Out("one") + "/adapter/adapter_model.safetensors");
  const std::vector<float> got = Numbers(Out("two") + "/adapter/adapter_model.safetensors");
  ASSERT_EQ(got.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(got[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  EXPECT_LT(std::sqrt(difference / norm), 1e-4);
}

// With dropout, of which each rank draws its own: the random numbers of both are in the checkpoint.
TEST_F(RanksTest, KilledAndResumedTheyEndWithBitIdenticalWeights) {
  ASSERT_EQ(Train(SpecOf(2, 0.1), Out("whole")).exit_code, 0);
  const std::string expected = ReadText(Out("whole") + "/adapter/adapter_model.safetensors");
  ASSERT_FALSE(expected.empty());
  int kills = 0;
  ProgramResult last;
  for (int round = 0; round < 40 && last.exit_code != 0; ++round) {
    std::vector<pid_t> ranks;
    last = Train(SpecOf(2, 0.1), Out("killed"), [&](const std::string& output, pid_t pid) {
      if (ranks.empty() && output.find("\"event\":\"checkpoint\"") != std::string::npos) {
        ranks = ChildrenOf(pid);
        EXPECT_EQ(ranks.size(), 2u);
        kill(pid, SIGKILL);
      }
    });
    if (last.signal == SIGKILL) ++kills;
    for (const pid_t rank : ranks) EXPECT_TRUE(WaitFor([&] { return IsOver(rank); })) << "rank " << rank << " lives on";
  }
  ASSERT_EQ(last.exit_code, 0);
  EXPECT_GE(kills, 4);
  EXPECT_EQ(ReadText(Out("killed") + "/adapter/adapter_model.safetensors"), expected);
}

// Whichever rank dies: the others end, and who started the run sees the signal, as if the run had one process.
TEST_F(RanksTest, TheDeathOfOneEndsAll) {
  for (const size_t victim : {0, 1}) {
    json spec = SpecOf(2, 0);
    spec["training"]["epochs"] = 300;
    const std::string out = Out("run" + std::to_string(victim));
    WriteText(out + ".spec.json", spec.dump());
    CaptureOptions options;
    std::vector<pid_t> ranks;
    options.on_output = [&](const CapturedResult& result, pid_t pid) {
      if (!ranks.empty() || result.out.find("\"event\":\"progress\"") == std::string::npos) return;
      ranks = ChildrenOf(pid);
      if (ranks.size() == 2u) kill(ranks[victim], SIGKILL);
    };
    const CapturedResult run =
        RunCaptured({LUTHIER_TRAINER_PROGRAM, "run", "--spec", out + ".spec.json", "--out", out}, options);
    ASSERT_EQ(ranks.size(), 2u) << run.err;
    EXPECT_EQ(run.exit_code, -1) << "not ended by a signal";
    EXPECT_THAT(run.err, HasSubstr("rank " + std::to_string(victim) + " of 2 was ended by signal 9"));
    for (const char* event : {"finished", "stopped", "failed"}) EXPECT_EQ(Find(Events(run.out), event), nullptr);
    for (const pid_t rank : ranks) EXPECT_TRUE(WaitFor([&] { return IsOver(rank); })) << "rank " << rank << " lives on";
  }
}

TEST_F(RanksTest, SigtermWritesACheckpointFromWhichTheyGoOn) {
  json spec = SpecOf(2, 0.1);
  spec["training"]["epochs"] = 30;
  const ProgramResult stopped = Train(spec, Out("run"), [](const std::string& output, pid_t pid) {
    if (output.find("\"event\":\"progress\"") != std::string::npos) kill(pid, SIGTERM);
  });
  EXPECT_EQ(stopped.exit_code, 0);
  const json last = Events(stopped.output).back();
  ASSERT_EQ(last["event"], "stopped") << last;
  const ProgramResult run = Train(spec, Out("run"));
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ((*Find(Events(run.output), "started"))["resumed_step"], last["step"]);
}

struct BadInput {
  const char* name;
  const char* cause;
  const char* message;  // part of it
  void (*damage)(json& spec, const std::string& folder);
};

class BadInputTest : public TrainerProgramTest, public ::testing::WithParamInterface<BadInput> {};

TEST_P(BadInputTest, FailsWithCauseAndRemedy) {
  json spec = LoraSpec();
  GetParam().damage(spec, folder_.path());
  const ProgramResult run = Train(spec, Out("run"));
  EXPECT_EQ(run.exit_code, 1);
  const json last = Events(run.output).back();
  EXPECT_EQ(last["event"], "failed");
  EXPECT_EQ(last["cause"], GetParam().cause) << last;
  EXPECT_THAT(last["message"].get<std::string>(), HasSubstr(GetParam().message));
}

void TrainOn(json& spec, const std::string& folder, const std::string& content) {
  WriteText(folder + "/bad.jsonl", content);
  spec["dataset"]["train"] = folder + "/bad.jsonl";
}

INSTANTIATE_TEST_SUITE_P(
    Faults, BadInputTest,
    ::testing::Values(BadInput{"MalformedJson", "USER_DATA", "bad.jsonl:2",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder, ChatLine("a", "b") + "{\"messages\": [\n");
                               }},
                      BadInput{"EmptyDataset", "USER_DATA", "bad.jsonl",
                               [](json& spec, const std::string& folder) { TrainOn(spec, folder, ""); }},
                      BadInput{"RowLongerThanTheContext", "USER_DATA", "bad.jsonl:1",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder, ChatLine(std::string(400, 'x'), "b"));
                               }},
                      BadInput{"NothingToTrain", "USER_DATA", "bad.jsonl:1",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder,
                                         R"({"messages": [{"role": "user", "content": "only a question"}]})"
                                         "\n");
                               }},
                      BadInput{"UnknownField", "CONFIG", "lora.rnk",
                               [](json& spec, const std::string&) { spec["lora"]["rnk"] = 4; }},
                      BadInput{"RankOutOfRange", "CONFIG", "lora.rank",
                               [](json& spec, const std::string&) { spec["lora"]["rank"] = 0; }},
                      BadInput{"UnknownTarget", "CONFIG", "q_prj",
                               [](json& spec, const std::string&) { spec["lora"]["target_modules"] = {"q_prj"}; }},
                      BadInput{"LayerThatIsNotThere", "CONFIG", "lora.layers: 99",
                               [](json& spec, const std::string&) { spec["lora"]["layers"] = {0, 99}; }},
                      BadInput{"MetricOfAnotherTask", "CONFIG", "evaluation.metric: field_f1",
                               [](json& spec, const std::string&) { spec["evaluation"]["metric"] = "field_f1"; }},
                      BadInput{"MoreThreadsThanCpus", "CONFIG", "resources.threads: 1024",
                               [](json& spec, const std::string&) { spec["resources"]["threads"] = 1024; }},
                      BadInput{"MissingTokenizer", "CONFIG", "tokenizer.json: not found; give a model folder",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 std::filesystem::remove(folder + "/base/tokenizer.json");
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"PatienceWithoutValidation", "CONFIG", "evaluation.patience",
                               [](json& spec, const std::string&) {
                                 spec["dataset"].erase("validation");
                                 spec["evaluation"]["patience"] = 2;
                               }},
                      BadInput{"MoreDevicesThanThereAre", "CONFIG", "resources.devices: 1024",
                               [](json& spec, const std::string&) { spec["resources"]["devices"] = 1024; }},
                      BadInput{"RanksThatMoveWeightsInTheBackwardPass", "CONFIG", "training.optimizer_in_backward",
                               [](json& spec, const std::string&) {
                                 spec["resources"]["devices"] = 2;
                                 spec["training"]["optimizer_in_backward"] = true;
                               }},
                      BadInput{"WhatEveryRankFinds", "CONFIG", "nowhere",
                               [](json& spec, const std::string&) {
                                 spec["resources"]["devices"] = 2;
                                 spec["base_model"] = "/nowhere";
                               }},
                      BadInput{"MissingModel", "CONFIG", "nowhere",
                               [](json& spec, const std::string&) { spec["base_model"] = "/nowhere"; }},
                      BadInput{"MissingTensor", "CONFIG", "missing: lm_head.weight",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["tie_word_embeddings"] = false;
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"WrongShape", "CONFIG", "wrong shape",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["intermediate_size"] = 96;
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"UnsupportedArchitecture", "CONFIG", "mixtral",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["model_type"] = "mixtral";
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"WeightsThatAreNotFinite", "NAN", "not finite",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 std::fstream weights(folder + "/base/model.safetensors",
                                                      std::ios::in | std::ios::out | std::ios::binary);
                                 weights.seekp(-4, std::ios::end);
                                 weights.write("\x00\x00\xc0\x7f", 4);  // a NaN
                                 weights.close();
                                 spec["base_model"] = folder + "/base";
                               }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace luthier
