#include "lib/plan/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// The job file of the README, every value open that can be.
json Example() {
  return json::parse(R"({
    "base_model": "luthier-tiny", "dataset": "intents", "task": "classification", "tuning": "lora",
    "lora": {"rank": "auto", "alpha": "auto", "target_modules": "all-linear", "dropout": 0},
    "training": {"epochs": "auto", "learning_rate": "auto", "batch_tokens": "auto", "max_length": "auto", "seed": 1,
                 "precision": "auto"},
    "evaluation": {"every": "auto", "metric": "exact_match"},
    "checkpoint": {"every": "auto", "keep": 2},
    "resources": {"devices": 1},
    "labels": {"team": "support"}})");
}

TEST(JobSpecTest, ReadsTheExampleOfTheReadme) {
  const auto spec = ParseJobSpec(Example());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->base_model, "luthier-tiny");
  EXPECT_EQ(spec->dataset.name, "intents");
  EXPECT_EQ(spec->recipe.task, "classification");
  EXPECT_FALSE(spec->recipe.lora.rank.has_value());
  EXPECT_TRUE(spec->recipe.lora.target_modules.empty());
  EXPECT_EQ(spec->recipe.lora.dropout, 0.0);
  EXPECT_EQ(spec->recipe.training.seed, 1);
  EXPECT_EQ(spec->recipe.checkpoint.keep, 2);
  EXPECT_EQ(spec->labels.at("team"), "support");
}

TEST(JobSpecTest, ThreeLinesAreEnough) {
  const auto spec = ParseJobSpec({{"base_model", "m"}, {"dataset", "d"}, {"task", "qa"}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.tuning, "lora");
}

TEST(JobSpecTest, WritesWhatItRead) {
  const json full = json::parse(R"({
    "base_model": "m", "dataset": {"train": "a/train", "validation": "a/validation", "test": "b/test"},
    "task": "ner", "tuning": "lora",
    "lora": {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"], "dropout": 0.1, "rslora": true, "dora": true,
             "plus_ratio": 4.0, "target_parameters": ["mlp.gate.weight"], "exclude_modules": ["layers.0.self_attn.q_proj"],
             "layers": [0, 2], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3.5}, "modules_to_save": ["embed_tokens"]},
    "training": {"epochs": 2.5, "max_steps": 7, "learning_rate": 0.001, "schedule": "cosine", "warmup_ratio": 0.1,
                 "weight_decay": 0.01, "beta1": 0.8, "beta2": 0.9, "clip_norm": 0.5, "batch_tokens": 100,
                 "micro_batch_tokens": 50, "max_length": 40, "seed": 3, "precision": "bf16", "order": "file",
                 "loss_on": "all", "too_long": "truncate", "activation_checkpointing": true, "optimizer_in_backward": false},
    "evaluation": {"every": 5, "metric": "loss", "max_rows": 6, "max_new_tokens": 7, "patience": 4},
    "checkpoint": {"every": 8, "keep": 9, "publish": "best"}, "resources": {"nodes": 2, "devices": 1, "threads": 2},
    "labels": {"a": "b"},
    "output_model": "intents-v2"})");
  const auto spec = ParseJobSpec(full);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(ToJson(*spec), full);
}

TEST(JobSpecTest, APatternExcludesNamesAndLayers) {
  json file = Example();
  file["lora"].erase("target_modules");
  file["lora"]["target_pattern"] = ".*q_proj";
  EXPECT_EQ(ParseJobSpec(file)->recipe.lora.target_pattern, ".*q_proj");
  EXPECT_EQ(ToJson(*ParseJobSpec(file))["lora"]["target_pattern"], ".*q_proj");
  file["lora"]["layers"] = {0};
  EXPECT_THAT(std::string(ParseJobSpec(file).status().message()), HasSubstr("lora.target_pattern: excludes"));
  file["lora"] = {{"exclude_pattern", ".*k_proj"}};
  EXPECT_EQ(ParseJobSpec(file)->recipe.lora.exclude_pattern, ".*k_proj");
  EXPECT_EQ(ToJson(*ParseJobSpec(file))["lora"]["exclude_pattern"], ".*k_proj");
  file["lora"]["exclude_modules"] = {"v_proj"};
  EXPECT_THAT(std::string(ParseJobSpec(file).status().message()), HasSubstr("lora.exclude_pattern: excludes"));
}

// PEFT's all-linear would be the experts and their router, too.
TEST(JobSpecTest, AllLinearIsNoAnswerBesideParameters) {
  json file = Example();
  ASSERT_EQ(file["lora"]["target_modules"], "all-linear");
  file["lora"]["target_parameters"] = {"mlp.experts.down_proj"};
  EXPECT_THAT(std::string(ParseJobSpec(file).status().message()),
              HasSubstr("lora.target_modules: all-linear goes with no lora.target_parameters; give a list"));
  file["lora"].erase("target_modules");
  const auto spec = ParseJobSpec(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.lora.target_parameters, std::vector<std::string>{"mlp.experts.down_proj"});
}

TEST(JobSpecTest, FullTrainingFreezesByName) {
  const json file = {
      {"base_model", "m"}, {"dataset", "d"}, {"tuning", "full"}, {"training", {{"freeze", {"model.embed_tokens"}}}}};
  const auto spec = ParseJobSpec(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.training.freeze, std::vector<std::string>{"model.embed_tokens"});
  EXPECT_EQ(ToJson(*spec)["training"]["freeze"], json({"model.embed_tokens"}));
}

struct BadField {
  const char* pointer;  // JSON pointer into the example
  json value;
  const char* message;
};

class BadFieldTest : public ::testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsRefusedWithItsPathAndTheRemedy) {
  json file = Example();
  file[json::json_pointer(GetParam().pointer)] = GetParam().value;
  const auto spec = ParseJobSpec(file);
  ASSERT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr(GetParam().message));
}

const double kNan = std::numeric_limits<double>::quiet_NaN();
const double kInfinity = std::numeric_limits<double>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Table, BadFieldTest,
    ::testing::Values(
        BadField{"/lora/rank", 0, "lora.rank: 0 is out of range; give a whole number from 1 to 256, or auto"},
        BadField{"/lora/rank", -4, "lora.rank: -4 is out of range"},
        BadField{"/lora/rank", 257, "lora.rank: 257 is out of range"},
        BadField{"/lora/rank", 1.5, "lora.rank: 1.5 is not a whole number"},
        BadField{"/lora/rank", "eight", "lora.rank: \"eight\" is not a whole number"},
        BadField{"/lora/rank", kNan, "lora.rank: null is not a whole number"},
        BadField{"/lora/alpha", 0, "lora.alpha: 0 is out of range; give a number above 0"},
        BadField{"/lora/alpha", kInfinity, "lora.alpha: null is out of range"},
        BadField{"/lora/dropout", 1, "lora.dropout: 1 is out of range"},
        BadField{"/lora/rslora", "yes", "lora.rslora: \"yes\" is neither true nor false"},
        BadField{"/lora/exclude_modules", json(std::vector<std::string>(300, "q_proj")),
                 "has 300 entries; give at most 256"},
        BadField{"/lora/target_modules", json::array(), "lora.target_modules: [] is not a list of names"},
        BadField{"/lora/target_modules", {"q_proj", 3}, "lora.target_modules: 3 is not a name"},
        BadField{"/lora/dora", 1, "lora.dora: 1 is neither true nor false"},
        BadField{"/training/optimizer_in_backward", "yes",
                 "training.optimizer_in_backward: \"yes\" is neither true nor false"},
        BadField{"/training",
                 {{"optimizer_in_backward", true}, {"clip_norm", 1}},
                 "training.clip_norm: has a value, but with optimizer_in_backward"},
        BadField{"/evaluation/patience", 0, "evaluation.patience: 0 is out of range"},
        BadField{"/checkpoint/publish", "newest", "checkpoint.publish: \"newest\""},
        BadField{"/lora/plus_ratio", 0.5, "lora.plus_ratio: 0.5 is out of range; give a number from 1 to 1000"},
        BadField{"/lora/exclude_modules", "q_proj", "lora.exclude_modules: \"q_proj\" is not a list"},
        BadField{"/lora/layers", {0, -1}, "lora.layers: -1 is not one; give a list of whole numbers from 0"},
        BadField{"/lora/rank_pattern", {{"q_proj", 0}}, "lora.rank_pattern: q_proj: 0 is out of range"},
        BadField{"/lora/rank_pattern", json::array({4}), "lora.rank_pattern: [4] is not a block"},
        BadField{"/lora/alpha_pattern", {{"q_proj", "big"}}, "lora.alpha_pattern: q_proj: \"big\" is not a number"},
        BadField{"/lora/rank_pattern", {{"(", 4}}, "lora.rank_pattern: '(' is no regular expression"},
        BadField{"/lora/target_pattern", "([", "; give one in RE2's syntax, such as .*\\.q_proj"},
        BadField{"/lora/exclude_pattern", "([", "lora.exclude_pattern: '([' is no regular expression"},
        BadField{"/lora/modules_to_save", {""}, "lora.modules_to_save: \"\" is not a name"},
        BadField{"/training/freeze", {"model.embed_tokens"}, "training.freeze: has values, but tuning is lora"},
        BadField{"/lora/rnak", 8, "lora.rnak: unknown field; did you mean 'rank'?"},
        BadField{"/training/learning_rate", -1e-4, "training.learning_rate: -0.0001 is out of range"},
        BadField{"/training/learning_rate", kNan, "training.learning_rate: null is out of range"},
        BadField{"/training/learning_rate", 1e30,
                 "training.learning_rate: 1e+30 is out of range; give a number above 0 and at most 1"},
        BadField{"/training/epochs", 0, "training.epochs: 0 is out of range"},
        BadField{"/training/epochs", "many", "training.epochs: \"many\" is not a number"},
        BadField{"/training/max_steps", 0, "training.max_steps: 0 is out of range"},
        BadField{"/training/beta2", 1.0, "training.beta2: 1.0 is out of range"},
        BadField{"/training/clip_norm", 0, "training.clip_norm: 0 is out of range"},
        BadField{"/training/batch_tokens", 1e18, "training.batch_tokens: 1e+18 is out of range"},
        BadField{"/training/max_length", 1, "training.max_length: 1 is out of range"},
        BadField{"/training/seed", -1, "training.seed: -1 is out of range"},
        BadField{"/training/precision", "fp8", "training.precision: \"fp8\" is not known; give one of: fp32, bf16"},
        BadField{"/training/schedule", 3, "training.schedule: 3 is not known"},
        BadField{"/training/learnign_rate", 1e-4,
                 "training.learnign_rate: unknown field; did you mean 'learning_rate'?"},
        BadField{"/training", "fast", "training: is not a block of fields"},
        BadField{"/evaluation/metric", "bleu", "evaluation.metric: \"bleu\" is not known"},
        BadField{"/checkpoint/keep", 0, "checkpoint.keep: 0 is out of range"},
        BadField{"/resources/devices", 0, "resources.devices: 0 is out of range"},
        BadField{"/resources/nodes", 0, "resources.nodes: 0 is out of range; give a whole number from 1 to 64"},
        BadField{"/resources/nodes", 65, "resources.nodes: 65 is out of range"},
        BadField{"/resources/nodes", "all", "resources.nodes: \"all\" is not a whole number"},
        BadField{"/task", "translation", "task: \"translation\" is not known; give one of: classification"},
        BadField{"/tuning", "qlora", "tuning: \"qlora\" is not known; give one of: lora, full"},
        BadField{"/tuning", "full", "lora: has values, but tuning is full"},
        BadField{"/base_model", "", "base_model: is missing"}, BadField{"/base_model", 7, "base_model: 7 is not text"},
        BadField{"/dataset", nullptr, "dataset: is missing"},
        BadField{"/dataset", 7, "dataset: is neither a name nor a block"},
        BadField{"/dataset", {{"validation", "v"}}, "dataset.train: is missing"},
        BadField{
            "/dataset", {{"train", "t"}, {"mixture", {{{"dataset", "a"}}}}}, "dataset.mixture: excludes dataset.train"},
        BadField{"/dataset", {{"mixture", {{{"weight", 2}}}}}, "dataset.mixture.dataset: is missing"},
        BadField{"/dataset", {{"mixture", {{{"dataset", "a"}, {"weight", -1}}}}}, "dataset.mixture.weight: -1"},
        BadField{"/dataset", {{"mixture", "a"}}, "dataset.mixture: is no list"},
        BadField{"/dataset",
                 {{"mixture", json(1001, json{{"dataset", "a"}})}},
                 "dataset.mixture: 1001 datasets are given; give at most 1000"},
        BadField{"/template_date", "2026-02-30", "template_date: '2026-02-30' is no date"},
        BadField{"/resources/node_selector", "h100", "resources.node_selector: \"h100\" is not a block"},
        BadField{"/resources/node_selector", {{"gpu", 100}}, "resources.node_selector: gpu: is not text"},
        BadField{"/resources/node_selector", {{"", "x"}}, "resources.node_selector: labels: a key of 0 bytes"},
        BadField{"/lora/start_from", 3, "lora.start_from: 3 is not text"},
        BadField{"/lora",
                 {{"start_from", "models/m/versions/1"}, {"rank", 8}},
                 "lora.rank: is that of the adapter in lora.start_from; leave it out"},
        BadField{"/labels/team", 3, "labels.team: is not text"},
        BadField{"/labels", {{"a\nb", "x"}}, "labels: the key 'a\\nb' has a control character; remove it"},
        BadField{"/labels/team", "x\x1b[2J", "labels.team: 'x\\x1b[2J' has a control character; remove it"},
        BadField{"/output_model", "Über", "output_model: 'Über' is no name"},
        BadField{"/modle", "x", "modle: unknown field"}));

TEST(JobSpecTest, ReportsEveryViolationTogether) {
  json file = Example();
  file["lora"]["rank"] = 0;
  file["training"]["epochs"] = -1;
  file["evaluatoin"] = 1;
  file.erase("base_model");
  const std::string message(ParseJobSpec(file).status().message());
  EXPECT_THAT(message, HasSubstr("lora.rank"));
  EXPECT_THAT(message, HasSubstr("training.epochs"));
  EXPECT_THAT(message, HasSubstr("did you mean 'evaluation'?"));
  EXPECT_THAT(message, HasSubstr("base_model"));
}

TEST(JobSpecTest, LabelsAreLimited) {
  json file = Example();
  for (int i = 0; i < 17; ++i) file["labels"]["key" + std::to_string(i)] = "v";
  EXPECT_THAT(std::string(ParseJobSpec(file).status().message()), HasSubstr("at most 16"));
}

TEST(JobSpecTest, AFileThatIsNoBlockIsRefused) {
  EXPECT_FALSE(ParseJobSpec(json::array()).ok());
  EXPECT_FALSE(ParseJobSpec("text").ok());
  EXPECT_FALSE(ParseJobSpec(nullptr).ok());
}

}  // namespace
}  // namespace luthier
