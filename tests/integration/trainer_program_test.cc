// A run: its events, how it learns, what it chooses and leaves behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/program.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

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

// The base has a token without numbers, which no training row has.
TEST_F(TrainerProgramTest, AValidationLossThatIsNoNumberEndsTheRun) {
  WriteTinyBase(Out("empty"), {{"tie_word_embeddings", false}});
  json making = LoraSpec();
  making.update(json{{"base_model", Out("empty")}, {"init", "random"}, {"tuning", "full"}});
  making.erase("lora");
  making["training"]["max_steps"] = 1;
  const ProgramResult made = Train(making, Out("made"));
  ASSERT_EQ(made.exit_code, 0) << made.output;
  const std::string weights = Out("made") + "/model/model.safetensors";
  std::string bytes = ReadText(weights);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  const json embedding = json::parse(bytes.substr(8, header_bytes))["model.embed_tokens.weight"];
  ASSERT_EQ(embedding["dtype"], "F32");
  const size_t token = 'Q' + 3, row_bytes = embedding["shape"][1].get<size_t>() * sizeof(float);
  const size_t row = 8 + header_bytes + embedding["data_offsets"][0].get<size_t>() + token * row_bytes;
  const float no_number = NAN;
  std::memcpy(bytes.data() + row, &no_number, sizeof no_number);
  WriteText(weights, bytes);

  json spec = LoraSpec();
  spec["base_model"] = Out("made") + "/model";
  WriteText(Out("validation.jsonl"), ChatLine("row 1", "Q"));
  spec["dataset"]["validation"] = Out("validation.jsonl");
  const ProgramResult run = Train(spec, Out("run"));
  EXPECT_EQ(run.exit_code, 1);
  const json last = Events(run.output).back();
  ASSERT_EQ(last["event"], "failed") << last;
  EXPECT_EQ(last["cause"], "NAN");
  EXPECT_THAT(last["message"].get<std::string>(), HasSubstr("loss of the tuned model on the validation part is"));
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

}  // namespace
}  // namespace luthier
