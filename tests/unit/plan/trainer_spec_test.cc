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
                     {"dataset",
                      {{"train",
                        {{{"path", "a.jsonl"}, {"weight", 1.0}, {"name", "a.jsonl"}},
                         {{"path", "b.jsonl"}, {"weight", 0.5}, {"name", "more"}}}},
                       {"validation", "v.jsonl"},
                       {"test", "t.jsonl"}}},
                     {"task", "qa"},
                     {"tuning", "lora"},
                     {"chat_template", "{{ messages }}"},
                     {"template_date", "2026-11-25"},
                     {"training", {{"max_steps", 3}}}};
  const auto parsed = ParseTrainerSpec(spec);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->train[1].path, "b.jsonl");
  EXPECT_EQ(parsed->train[1].weight, 0.5);
  EXPECT_EQ(ToJson(*parsed), spec);
}

TEST(TrainerSpecTest, AbsentFieldsHaveTheDefaultsOfTheProtocol) {
  const auto spec = ParseTrainerSpec({{"protocol", 1}, {"base_model", "m"}, {"dataset", {{"train", "a.jsonl"}}}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->attempt, "local");
  EXPECT_EQ(spec->base_model_name, "m");
  EXPECT_EQ(spec->init, "pretrained");
  ASSERT_EQ(spec->train.size(), 1u);
  EXPECT_EQ(spec->train[0].path, "a.jsonl");
  EXPECT_EQ(spec->train[0].weight, 1);
  EXPECT_EQ(spec->validation, "");
}

// Rows are named by file and line: two files of one name must not be one.
TEST(TrainerSpecTest, NamesTrainingFilesByAsMuchOfTheirPathsAsTellsThemApart) {
  const auto spec = ParseTrainerSpec(
      {{"protocol", 1},
       {"base_model", "m"},
       {"dataset", {{"train", {"a/train.jsonl", {{"path", "b/train.jsonl"}, {"weight", 2}}, "c/more.jsonl"}}}}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::vector<std::string> names;
  for (const TrainFile& file : spec->train) names.push_back(file.name);
  EXPECT_THAT(names, ElementsAre("a/train.jsonl", "b/train.jsonl", "more.jsonl"));
}

TEST(TrainerSpecTest, RefusesAWeightOfNothing) {
  for (const json& weight : {json(0), json(-1), json("twice")}) {
    const auto spec = ParseTrainerSpec(
        {{"protocol", 1}, {"base_model", "m"}, {"dataset", {{"train", {{{"path", "a.jsonl"}, {"weight", weight}}}}}}});
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr("dataset.train.weight"));
  }
}

TEST(TrainerSpecTest, ReportsEveryViolationTogether) {
  const auto spec = ParseTrainerSpec({{"protocol", 2},
                                      {"init", "zeros"},
                                      {"template_date", "2026-02-30"},
                                      {"dataset", {{"train", json::array()}, {"vaildation", "x"}}},
                                      {"labels", json::object()}});
  const std::string message(spec.status().message());
  EXPECT_THAT(message, HasSubstr("protocol: 2"));
  EXPECT_THAT(message, HasSubstr("base_model: is missing"));
  EXPECT_THAT(message, HasSubstr("init: \"zeros\""));
  EXPECT_THAT(message, HasSubstr("template_date: '2026-02-30' is no date"));
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

TEST(TrainerSpecTest, AVersionIsForTheServerToLookUp) {
  const auto spec = ParseTrainerSpec({{"protocol", 1},
                                      {"base_model", "m"},
                                      {"lora", {{"start_from", "models/m/versions/1"}}},
                                      {"dataset", {{"train", "a.jsonl"}}}});
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr("lora.start_from: names a version that a server holds"));
}

TEST(TrainerSpecTest, AnExportNeedsAnAdapterAndNothingThatSaysHowToTrain) {
  const json least = {{"protocol", 1},
                      {"base_model", "m"},
                      {"start_adapter", "a"},
                      {"export", "gguf"},
                      {"resources", {{"threads", 2}}}};
  const auto spec = ParseTrainerSpec(least);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->exports());
  const auto again = ParseTrainerSpec(ToJson(*spec));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->export_as, "gguf");
  EXPECT_EQ(again->start_adapter, "a");
  EXPECT_EQ(again->recipe.resources.threads, 2);

  json much = least;
  much["export"] = "onnx";
  EXPECT_THAT(std::string(ParseTrainerSpec(much).status().message()), HasSubstr("give one of: merged, gguf"));
  much["export"] = "merged";
  much.erase("start_adapter");
  much["dataset"] = {{"train", "a.jsonl"}};
  much["init"] = "random";
  much["lora"] = {{"rank", 8}};
  much["template_date"] = "2026-11-29";
  much["resources"]["nodes"] = 3;
  much["resources"]["devices"] = 2;
  const std::string message(ParseTrainerSpec(much).status().message());
  for (const char* field : {"dataset", "init", "lora", "template_date"})
    EXPECT_THAT(message, HasSubstr(std::string(field) + ": has no effect on an export"));
  EXPECT_THAT(message, HasSubstr("start_adapter: is missing"));
  EXPECT_THAT(message, HasSubstr("resources.nodes: 3 is more than an export uses"));
  EXPECT_THAT(message, HasSubstr("resources.devices: 2 is more than an export uses"));
}

TEST(TrainerSpecTest, NamesTheFileThatCannotBeRead) {
  TempFolder folder;
  EXPECT_EQ(ReadTrainerSpec(folder.path() + "/absent.json").status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder.path() + "/broken.json") << "{";
  EXPECT_THAT(std::string(ReadTrainerSpec(folder.path() + "/broken.json").status().message()),
              HasSubstr("broken.json: is not valid JSON: line 1, column 2"));
  EXPECT_THAT(std::string(ReadTrainerSpec(folder.path()).status().message()), HasSubstr("cannot be read"));
}

TEST(TrainerSpecTest, RefusesAFieldThatStandsTwice) {
  const TempFolder folder;
  const std::string path = folder.path() + "/twice.json";
  std::ofstream(path) << R"({"protocol": 1, "training": {"seed": 1}, "lora": {"rank": 1}, "training": {"epochs": 2}})";
  EXPECT_THAT(std::string(ReadTrainerSpec(path).status().message()), HasSubstr("has the field 'training' twice"));
}

// Whoever prints or copies such a value calls itself once a level.
TEST(TrainerSpecTest, RefusesASpecThatIsNestedTooDeep) {
  const TempFolder folder;
  const std::string path = folder.path() + "/deep.json";
  std::ofstream(path) << R"({"lora": {"rank": )" << std::string(300'000, '[') << std::string(300'000, ']') << "}}";
  EXPECT_THAT(std::string(ReadTrainerSpec(path).status().message()), HasSubstr("is nested deeper than 64 levels"));
}

}  // namespace
}  // namespace luthier
