// luthier-trainer as a user runs it, with a base model and rows that all tests of a suite share.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {

inline std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline std::vector<nlohmann::json> Events(const std::string& output) {
  std::vector<nlohmann::json> events;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) events.push_back(nlohmann::json::parse(line));
  return events;
}

inline const nlohmann::json* Find(const std::vector<nlohmann::json>& events, const std::string& name) {
  for (const nlohmann::json& event : events) {
    if (event["event"] == name) return &event;
  }
  return nullptr;
}

// One folder with a base model of random weights (made by the program itself), a small dataset and specs.
class TrainerProgramTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    using nlohmann::json;
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
  static nlohmann::json LoraSpec() {
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

  static ProgramResult Train(const nlohmann::json& spec, const std::string& out,
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

}  // namespace luthier
