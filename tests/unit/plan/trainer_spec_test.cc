#include "lib/plan/trainer_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(TrainerSpecTest, ReadsASpecAndWritesItAgain) {
  const json spec = {{"protocol", 1},
                     {"attempt", "jobs/j1/attempts/2"},
                     {"base_model", "models/tiny"},
                     {"base_model_name", "luthier-tiny"},
                     {"init", "pretrained"},
                     {"dataset", {{"train", {"a.jsonl", "b.jsonl"}}, {"validation", "v.jsonl"}, {"test", "t.jsonl"}}},
                     {"task", "qa"},
                     {"tuning", "lora"},
                     {"training", {{"max_steps", 3}}}};
  const auto parsed = ParseTrainerSpec(spec);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->train, ElementsAre("a.jsonl", "b.jsonl"));
  EXPECT_EQ(ToJson(*parsed), spec);
}

TEST(TrainerSpecTest, AbsentFieldsHaveTheDefaultsOfTheProtocol) {
  const auto spec = ParseTrainerSpec({{"protocol", 1}, {"base_model", "m"}, {"dataset", {{"train", "a.jsonl"}}}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->attempt, "local");
  EXPECT_EQ(spec->base_model_name, "m");
  EXPECT_EQ(spec->init, "pretrained");
  EXPECT_THAT(spec->train, ElementsAre("a.jsonl"));
  EXPECT_EQ(spec->validation, "");
}

TEST(TrainerSpecTest, ReportsEveryViolationTogether) {
  const auto spec = ParseTrainerSpec({{"protocol", 2},
                                      {"init", "zeros"},
                                      {"dataset", {{"train", json::array()}, {"vaildation", "x"}}},
                                      {"labels", json::object()}});
  const std::string message(spec.status().message());
  EXPECT_THAT(message, HasSubstr("protocol: 2"));
  EXPECT_THAT(message, HasSubstr("base_model: is missing"));
  EXPECT_THAT(message, HasSubstr("init: \"zeros\""));
  EXPECT_THAT(message, HasSubstr("dataset.train: is missing"));
  EXPECT_THAT(message, HasSubstr("did you mean 'validation'?"));
  EXPECT_THAT(message, HasSubstr("labels: unknown field"));
}

TEST(TrainerSpecTest, AWarmStartNeedsTheBaseThatItWasTrainedOn) {
  const auto spec = ParseTrainerSpec({{"protocol", 1},
                                      {"base_model", "m"},
                                      {"init", "random"},
                                      {"start_adapter", "a"},
                                      {"dataset", {{"train", "a.jsonl"}}}});
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr("start_adapter: goes on from"));
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr("init: pretrained"));
}

TEST(TrainerSpecTest, NamesTheFileThatCannotBeRead) {
  TempFolder folder;
  EXPECT_EQ(ReadTrainerSpec(folder.path() + "/absent.json").status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder.path() + "/broken.json") << "{";
  EXPECT_THAT(std::string(ReadTrainerSpec(folder.path() + "/broken.json").status().message()),
              HasSubstr("broken.json"));
}

}  // namespace
}  // namespace luthier
