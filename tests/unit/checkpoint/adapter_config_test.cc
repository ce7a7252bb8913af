#include "lib/checkpoint/adapter_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>

#include "lib/checkpoint/name_pattern.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

json Minimal() {
  return {{"peft_type", "LORA"}, {"r", 8}, {"lora_alpha", 16}, {"target_modules", {"q_proj", "v_proj"}}};
}

AdapterConfig MustParse(const json& json) {
  const auto config = ParseAdapterConfig(json);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : AdapterConfig{};
}

// A name in the list is a whole module name or its end at a dot.
TEST(AdapterConfigTest, AListMatchesWholeNamesAtTheEnd) {
  const AdapterConfig config = MustParse(Minimal());
  EXPECT_TRUE(config.Targets("model.layers.0.self_attn.q_proj", 0));
  EXPECT_FALSE(config.Targets("model.layers.0.self_attn.k_proj", 0));
  EXPECT_FALSE(config.Targets("model.layers.0.self_attn.qq_proj", 0));
  EXPECT_FALSE(config.Targets("model.layers.0.q_proj.inner", 0));
}

TEST(AdapterConfigTest, AStringIsARegularExpressionForTheWholeName) {
  json file = Minimal();
  file["target_modules"] = R"(.*\.(q|v)_proj)";
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.Targets("model.layers.3.self_attn.v_proj", 3));
  EXPECT_FALSE(config.Targets("model.layers.3.self_attn.v_proj.extra", 3));
  file["target_modules"] = "all-linear";
  EXPECT_TRUE(MustParse(file).Targets("model.layers.3.mlp.up_proj", 3));
}

// With a matcher that backtracks this takes longer than the universe is old; a job file comes from whoever may submit.
TEST(AdapterConfigTest, APatternCannotKeepTheServerBusy) {
  json file = Minimal();
  file["target_modules"] = "(((.*)*)*)*x";
  EXPECT_FALSE(MustParse(file).Targets("model.layers.3.self_attn.v_proj", 3));
}

// A thread keeps hundreds of patterns that it has compiled.
TEST(AdapterConfigTest, APatternCannotTakeTheServersMemory) {
  EXPECT_TRUE(CheckPattern(".*\\.(1[0-9]|2[0-3])\\.self_attn\\.[qkv]_proj").ok());
  EXPECT_TRUE(CheckPattern(std::string(1000, 'x')).ok());
  EXPECT_FALSE(CheckPattern("[^a]{1000}[^b]{1000}[^c]{1000}[^d]{1000}[^e]{1000}[^f]{1000}[^g]{1000}[^h]{1000}").ok());
}

TEST(AdapterConfigTest, LayersOutsideTheListGetNone) {
  json file = Minimal();
  file["layers_to_transform"] = {0, 2};
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.Targets("model.layers.2.self_attn.q_proj", 2));
  EXPECT_FALSE(config.Targets("model.layers.1.self_attn.q_proj", 1));
}

// The patterns of reference case llama_rank_pattern: rank by module and by layer, alpha by module.
TEST(AdapterConfigTest, ExcludedLayersGetNoneInBothForms) {
  json file = Minimal();
  file["exclude_modules"] = {"layers.1.self_attn.q_proj"};
  EXPECT_TRUE(MustParse(file).Targets("model.layers.0.self_attn.q_proj", 0));
  EXPECT_FALSE(MustParse(file).Targets("model.layers.1.self_attn.q_proj", 1));
  file["exclude_modules"] = R"(.*\.[0-3]\..*)";
  EXPECT_FALSE(MustParse(file).Targets("model.layers.0.self_attn.q_proj", 0));
  EXPECT_TRUE(MustParse(file).Targets("model.layers.4.self_attn.q_proj", 4));
}

// PEFT adapts head and embedding only where they are named.
TEST(AdapterConfigTest, HeadAndEmbeddingAreTargetedByNameOnly) {
  for (const std::string module : {"lm_head", "model.embed_tokens"}) {
    json file = Minimal();
    file["target_modules"] = "all-linear";
    EXPECT_FALSE(MustParse(file).Targets(module, -1));
    file["target_modules"] = "lm_head|.*embed_tokens";
    EXPECT_TRUE(MustParse(file).Targets(module, -1));
    file["target_modules"] = {"lm_head", "embed_tokens"};
    EXPECT_TRUE(MustParse(file).Targets(module, -1));
  }
}

// PEFT looks for the number of a layer only in names of which the list has the end.
TEST(AdapterConfigTest, WhatIsNamedInFullNeedsNoLayerOfTheList) {
  json file = Minimal();
  file["target_modules"] = {"lm_head", "embed_tokens", "q_proj", "model.layers.1.self_attn.v_proj"};
  file["layers_to_transform"] = {0};
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.Targets("lm_head", -1));
  EXPECT_FALSE(config.Targets("model.embed_tokens", -1));
  EXPECT_TRUE(config.Targets("model.layers.0.self_attn.q_proj", 0));
  EXPECT_FALSE(config.Targets("model.layers.1.self_attn.q_proj", 1));
  EXPECT_TRUE(config.Targets("model.layers.1.self_attn.v_proj", 1));
}

TEST(AdapterConfigTest, WhatIsTrainedWholeCarriesNoAdapter) {
  json file = Minimal();
  file["modules_to_save"] = {"layers.1", "embed_tokens"};
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.Saves("model.embed_tokens"));
  EXPECT_FALSE(config.Saves("model.norm"));
  EXPECT_TRUE(config.Targets("model.layers.0.self_attn.q_proj", 0));
  EXPECT_FALSE(config.Targets("model.layers.1.self_attn.q_proj", 1));
  EXPECT_TRUE(config.Targets("model.layers.11.self_attn.q_proj", 11));
}

TEST(AdapterConfigTest, ARegularExpressionExcludesALayerList) {
  json file = Minimal();
  file["target_modules"] = ".*q_proj";
  file["layers_to_transform"] = {0};
  EXPECT_THAT(std::string(ParseAdapterConfig(file).status().message()), HasSubstr("layers_to_transform"));
}

TEST(AdapterConfigTest, PatternsChangeRankAndScaleOfTheirModules) {
  json file = Minimal();
  file["rank_pattern"] = {{"down_proj", 4}, {"layers.0.self_attn.q_proj", 2}};
  file["alpha_pattern"] = {{"q_proj", 5}, {"layers.2.mlp.up_proj", 24}};
  const AdapterConfig config = MustParse(file);
  EXPECT_EQ(config.RankOf("model.layers.0.self_attn.q_proj"), 2);
  EXPECT_EQ(config.RankOf("model.layers.1.self_attn.q_proj"), 8);
  EXPECT_EQ(config.RankOf("model.layers.1.mlp.down_proj"), 4);
  EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.0.self_attn.q_proj"), 5.0 / 2);
  EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.1.self_attn.q_proj"), 5.0 / 8);
  EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.2.mlp.up_proj"), 24.0 / 8);
  EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.1.mlp.down_proj"), 16.0 / 4);
}

// PEFT takes the first of the file that matches, and a JSON file need not be sorted.
TEST(AdapterConfigTest, OfPatternsThatOverlapTheFirstOfTheFileCounts) {
  const auto parsed = nlohmann::ordered_json::parse(R"({"peft_type": "LORA", "r": 8, "lora_alpha": 16,
      "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4, ".*0.*q_proj": 2},
      "alpha_pattern": {"layers.1.self_attn.q_proj": 8, "b|q_proj": 24, "a|q_proj": 3}})");
  const auto check = [](const AdapterConfig& config) {
    EXPECT_EQ(config.RankOf("model.layers.0.self_attn.q_proj"), 4);
    EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.0.self_attn.q_proj"), 24.0 / 4);
    EXPECT_DOUBLE_EQ(config.ScaleOf("model.layers.1.self_attn.q_proj"), 8.0 / 4);
  };
  const auto config = ParseAdapterConfig(parsed);
  ASSERT_TRUE(config.ok()) << config.status();
  check(*config);
  // As a file that is read, and one that is written.
  const TempFolder folder;
  std::ofstream(folder.path() + "/adapter_config.json") << parsed;
  check(*ReadAdapterConfig(folder.path()));
  std::ofstream(folder.path() + "/adapter_config.json") << ToJson(*config);
  check(*ReadAdapterConfig(folder.path()));
}

TEST(AdapterConfigTest, AModuleIsSavedWithWhatItHolds) {
  json file = Minimal();
  file["modules_to_save"] = {"mlp", "norm"};
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.Saves("model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(config.Saves("model.norm"));
  EXPECT_FALSE(config.Saves("model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(config.Targets("model.layers.0.mlp.up_proj", 0));
}

TEST(AdapterConfigTest, ALookaheadIsRefusedWithARemedy) {
  json file = Minimal();
  file["target_modules"] = "(?!.*lm_head).*_proj";
  EXPECT_THAT(std::string(ParseAdapterConfig(file).status().message()),
              AllOf(HasSubstr("target_modules: '(?!.*lm_head).*_proj' is no regular expression"),
                    HasSubstr("look-around"), HasSubstr("exclude_modules")));
}

TEST(AdapterConfigTest, RsLoraDividesByTheRoot) {
  json file = Minimal();
  file["use_rslora"] = true;
  EXPECT_DOUBLE_EQ(MustParse(file).ScaleOf("model.layers.0.self_attn.q_proj"), 16.0 / std::sqrt(8.0));
}

TEST(AdapterConfigTest, WritesWhatItReads) {
  json file = Minimal();
  file["rank_pattern"] = {{"down_proj", 4}};
  file["layers_to_transform"] = {1};
  file["use_dora"] = true;
  file["exclude_modules"] = {"layers.2.self_attn.q_proj"};
  file["base_model_name_or_path"] = "luthier-tiny";
  const json written = ToJson(MustParse(file));
  EXPECT_EQ(ToJson(MustParse(written)), written);
  EXPECT_EQ(written["base_model_name_or_path"], "luthier-tiny");
  EXPECT_EQ(written["task_type"], "CAUSAL_LM");
  EXPECT_EQ(written["inference_mode"], true);
  EXPECT_TRUE(written["lora_alpha"].is_number_integer());
  EXPECT_TRUE(written["modules_to_save"].is_null());  // vLLM refuses adapters that have it
}

TEST(AdapterConfigTest, ParametersAreTargetedByNamesAtTheEnd) {
  json file = Minimal();
  EXPECT_FALSE(MustParse(file).TargetsParameter("model.layers.0.mlp.experts.down_proj"));
  file["target_parameters"] = {"mlp.experts.down_proj", "layers.1.mlp.gate.weight"};
  const AdapterConfig config = MustParse(file);
  EXPECT_TRUE(config.TargetsParameter("model.layers.0.mlp.experts.down_proj"));
  EXPECT_TRUE(config.TargetsParameter("model.layers.1.mlp.gate.weight"));
  EXPECT_FALSE(config.TargetsParameter("model.layers.11.mlp.gate.weight"));
  EXPECT_FALSE(config.TargetsParameter("model.layers.0.mlp.experts.gate_up_proj"));
  EXPECT_EQ(ToJson(config)["target_parameters"], file["target_parameters"]);
  file["target_modules"] = nullptr;
  EXPECT_FALSE(MustParse(file).Targets("model.layers.0.self_attn.q_proj", 0));
}

TEST(AdapterConfigTest, WhatPeftRefusesBesideParametersIsRefused) {
  const std::pair<const char*, json> changes[] = {
      {"use_dora", true}, {"lora_dropout", 0.1}, {"target_modules", "all-linear"}};
  for (const auto& [field, value] : changes) {
    json file = Minimal();
    file[field] = value;
    EXPECT_TRUE(ParseAdapterConfig(file).ok()) << field;
    file["target_parameters"] = {"mlp.experts.down_proj"};
    EXPECT_THAT(std::string(ParseAdapterConfig(file).status().message()),
                AllOf(HasSubstr(field), HasSubstr("target_parameters")));
  }
}

TEST(AdapterConfigTest, AnAlphaThatIsNoInt64IsWrittenAsItIs) {
  json file = Minimal();
  file["lora_alpha"] = 1e300;
  EXPECT_EQ(ToJson(MustParse(file))["lora_alpha"], 1e300);
}

TEST(AdapterConfigTest, InitialisationsThatLeaveTheBaseAloneAreNoRefusal) {
  for (const json& init : {json(true), json(false), json(nullptr), json("gaussian"), json("eva"), json("orthogonal")}) {
    json file = Minimal();
    file["init_lora_weights"] = init;
    EXPECT_TRUE(ParseAdapterConfig(file).ok()) << init;
  }
}

TEST(AdapterConfigTest, RefusesByNameWhatChangesTheAdapter) {
  const std::pair<const char*, json> changes[] = {
      {"peft_type", "IA3"},
      {"peft_type", 5},
      {"r", 1e300},
      {"r", true},
      {"rank_pattern", {{"q_proj", 1e300}}},
      {"layers_to_transform", {1, -1}},
      {"use_qalora", true},
      {"bias", "all"},
      {"init_lora_weights", "pissa"},
      {"init_lora_weights", "pissa_niter_16"},
      {"init_lora_weights", "olora"},
      {"init_lora_weights", "loftq"},
      {"init_lora_weights", 7},
      {"fan_in_fan_out", true},
      {"lora_bias", true},
      {"ensure_weight_tying", true},
      {"layers_pattern", {"blocks"}},
      {"trainable_token_indices", {3}},
      {"target_parameters", "experts.down_proj"},
      {"r", 0},
      {"target_modules", nullptr},
      {"target_modules", "(q"},
      {"target_modules", std::string(100'000, '(')},
      {"exclude_modules", "(q"},
      {"exclude_modules", "(?!lm_head).*"},
      {"rank_pattern", {{"q_proj", 0}}},
      {"alpha_pattern", {{"(", 1}}},
      {"lora_alpha", "16"},
      {"lora_dropout", "none"},
      {"lora_dropout", 1.5},
      {"use_rslora", "yes"},
      {"use_dora", 1},
      {"modules_to_save", "lm_head"},
      {"rank_pattern", json::array({8})},
      {"alpha_pattern", {{"q_proj", "x"}}},
      {"alpha_pattern", {{"q_proj", nullptr}}},
      {"layers_to_transform", {{"layer", 1}}},
      {"exclude_modules", 5},
      {"target_modules", json::array({1})},
      {"target_modules", 7},
  };
  for (const auto& [field, value] : changes) {
    json changed = Minimal();
    changed[field] = value;
    const auto config = ParseAdapterConfig(changed);
    ASSERT_FALSE(config.ok()) << field;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(field));
  }
  EXPECT_FALSE(ParseAdapterConfig(json::array()).ok());
}

}  // namespace
}  // namespace luthier
