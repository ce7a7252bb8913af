#include "lib/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json Config(const std::string& family, const json& changes = json::object()) {
  json config = {{"model_type", family},     {"vocab_size", 10},       {"hidden_size", 8},
                 {"intermediate_size", 16},  {"num_hidden_layers", 4}, {"num_attention_heads", 2},
                 {"num_key_value_heads", 1}, {"head_dim", 4},          {"max_position_embeddings", 64},
                 {"pad_token_id", nullptr}};
  config.update(changes);
  return config;
}

ModelConfig MustParse(const json& json) {
  const auto config = ParseModelConfig(json);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig{};
}

std::vector<int64_t> Windows(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const LayerConfig& layer : config.layers) windows.push_back(layer.window.value_or(0));
  return windows;
}

TEST(ModelConfigTest, EveryFamilyReadsTheCommonFields) {
  for (const std::string& family : FamilyNames()) {
    const ModelConfig config = MustParse(Config(family));
    EXPECT_EQ(config.model_type, family);
    EXPECT_EQ(config.q_size(), 8) << family;
    EXPECT_EQ(config.kv_size(), 4) << family;
    EXPECT_EQ(config.layers.size(), 4u) << family;
    EXPECT_FALSE(config.ropes.empty()) << family;
    EXPECT_GT(config.attention_scale, 0) << family;
    EXPECT_GT(CheckpointTensors(config).size(), 4u * 5) << family;
    EXPECT_GE(LinearLayers(config).size(), 4u * 4) << family;
  }
}

// One field after another, each with a value that the family does not compute.
TEST(ModelConfigTest, RefusesByNameAndValueWhatItDoesNotImplement) {
  struct Refusal {
    const char* family;
    const char* field;
    json value;
  };
  const Refusal refusals[] = {
      {"llama", "hidden_act", "gelu"},
      {"llama", "some_future_field", 7},
      {"llama", "attention_chunk_size", 8192},
      {"llama", "hidden_dropout", 0.1},
      {"llama", "sinks", true},
      {"llama", "is_causal", "no"},
      {"llama", "is_causal", false},
      {"gemma3_text", "is_causal", nullptr},
      {"llama", "rope_theta", "high"},
      {"qwen3_moe", "use_qk_norm", false},
      {"qwen3_moe", "shared_expert_intermediate_size", 768},
      {"phi3", "full_attn_mod", 2},
      {"gemma2", "sliding_window_size", 1024},
      {"llama", "lm_head_bias", true},
      {"llama", "sliding_window", 128},
      {"llama", "quantization_config", {{"bits", 4}}},
      {"llama", "partial_rotary_factor", 0.5},
      {"llama", "num_key_value_heads", 3},
      {"llama", "hidden_size", 0},
      {"llama", "rms_norm_eps", -1.0},
      {"llama", "residual_multiplier", 0.5},
      {"llama", "attn_logit_softcapping", 50.0},
      {"llama", "final_logit_softcapping", 30.0},
      {"llama", "layer_types", {"sliding_attention", "full_attention", "full_attention", "full_attention"}},
      {"llama", "num_experts", 8},
      {"llama", "no_rope_layers", {1, 1, 1, 0}},
      {"llama", "attention_dropout", 1.5},
      {"llama", "rope_parameters", {{"full_attention", {{"rope_theta", 1.0}}}}},
      {"llama", "rope_scaling", {{"rope_type", "ntk"}, {"factor", 2.0}}},
      {"llama", "rope_scaling", {{"rope_type", "linear"}, {"factor", 0.0}}},
      {"llama", "rope_scaling", {{"rope_type", "linear"}}},
      {"llama", "rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"beta_fast", 4}}},
      {"llama",
       "rope_scaling",
       {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 1.0}}},
      {"mistral", "attention_bias", true},
      {"mistral", "layer_types", {"sliding_attention", "full_attention"}},
      {"qwen2", "mlp_bias", true},
      {"qwen2", "layer_types", {"chunked_attention", "full_attention", "full_attention", "full_attention"}},
      {"qwen2", "layer_types", {"full_attention"}},
      {"qwen3", "clip_qkv", 8.0},
      {"gemma2", "use_bidirectional_attention", true},
      {"gemma2", "hidden_activation", "gelu"},
      {"gemma3_text", "attn_logit_softcapping", 50.0},
      {"gemma3_text", "rope_parameters", {{"rope_theta", 1.0}}},
      {"gemma3_text", "rope_scaling", {{"type", "linear"}, {"factor", 8.0}}},
      {"gemma3_text", "_sliding_window_pattern", 2},
      {"phi3", "resid_pdrop", 0.1},
      {"phi3", "embd_pdrop", 0.1},
      {"phi3", "partial_rotary_factor", 0.1},
      {"phi3", "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
      {"phi3",
       "rope_scaling",
       {{"type", "longrope"},
        {"short_factor", {1.0, 1.0}},
        {"long_factor", {1.0, 2.0}},
        {"original_max_position_embeddings", 1}}},
      {"phi3", "rope_scaling", {{"type", "longrope"}, {"short_factor", {1.0}}, {"long_factor", {1.0, 2.0}}}},
      {"smollm3", "no_rope_layers", {1, 0}},
      {"smollm3", "no_rope_layers", {true, true, true, false}},
      {"qwen2", "max_window_layers", "2"},
      {"qwen3_moe", "mlp_only_layers", 1},
      {"qwen3_moe", "mlp_only_layers", {"1"}},
      {"granite", "query_pre_attn_scalar", 64},
      {"granite", "logits_scaling", 1e-320},
      {"olmo2", "mlp_bias", true},
      {"qwen3_moe", "output_router_logits", true},
      {"qwen3_moe", "num_experts_per_tok", 129},
      {"qwen3_moe", "num_experts", 1 << 29},
      {"llama", "torch_dtype", "int8"},
      {"llama", "dtype", "float8_e4m3fn"},
      {"llama", "eos_token_id", int64_t{1} << 40},
      {"llama", "eos_token_id", "</s>"},
      {"llama", "pad_token_id", 10},
      {"llama", "pad_token_id", -11},
      {"llama", "pad_token_id", 1.5},
  };
  for (const Refusal& refusal : refusals) {
    const auto parsed = ParseModelConfig(Config(refusal.family, {{refusal.field, refusal.value}}));
    ASSERT_FALSE(parsed.ok()) << refusal.family << " " << refusal.field << " " << refusal.value;
    // A field of a list, or of a block, is named by its path.
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(refusal.field));
  }
}

TEST(ModelConfigTest, ValuesThatLeaveAModelAsItIsAreNoRefusal) {
  MustParse(Config("llama", {{"sliding_window", nullptr},
                             {"use_sliding_window", false},
                             {"rope_interleaved", false},
                             {"is_causal", true},
                             {"pretraining_tp", 2},
                             {"layer_types", {"full_attention", "full_attention", "full_attention", "full_attention"}},
                             {"attention_dropout", 0.1},
                             {"residual_multiplier", 1.0},
                             {"rope_scaling", nullptr},
                             {"use_mrope", false}}));
}

// What the published files of the families hold besides the fields that their forward passes read.
TEST(ModelConfigTest, FieldsOfPublishedFilesAreNoRefusal) {
  const json common = {{"_name_or_path", "x"},
                       {"_attn_implementation_autoset", true},
                       {"auto_map", {{"AutoConfig", "configuration_x.X"}}},
                       {"initializer_range", 0.02},
                       {"pad_token_id", 0},
                       {"transformers_version", "4.53.0"},
                       {"unsloth_fixed", true},
                       {"use_cache", true},
                       {"torch_dtype", "bfloat16"}};
  struct Published {
    const char* family;
    json fields;
  };
  const Published files[] = {
      // SmolLM2, Llama 3.2 with Unsloth's name, a fine-tune of Vicuna.
      {"llama",
       {{"is_llama_config", true},
        {"rope_interleaved", false},
        {"pretraining_tp", 1},
        {"transformers.js_config", {{"kv_cache_dtype", {{"q4f16", "float16"}}}}}}},
      {"llama",
       {{"unsloth_version", "2025.3"},
        {"tokenizer_padding_side", "right"},
        {"max_sequence_length", 2048},
        {"temperature", 0.6},
        {"do_sample", true}}},
      {"qwen2",
       {{"use_mrope", false}, {"max_window_layers", 21}, {"sliding_window", 32768}, {"use_sliding_window", false}}},
      {"qwen3", {{"max_window_layers", 36}, {"sliding_window", nullptr}, {"attention_bias", false}}},
      {"gemma2",
       {{"hidden_act", "gelu_pytorch_tanh"},
        {"hidden_activation", "gelu_pytorch_tanh"},
        {"cache_implementation", "hybrid"},
        {"sliding_window", 4096},
        {"sliding_window_size", 4096}}},
      {"gemma3_text",
       {{"_sliding_window_pattern", 6},
        {"cache_implementation", "hybrid"},
        {"attn_logit_softcapping", nullptr},
        {"use_bidirectional_attention", false}}},
      // Phi-4-mini.
      {"phi3",
       {{"full_attn_mod", 1},
        {"interpolate_factor", 1},
        {"lm_head_bias", false},
        {"mlp_bias", false},
        {"attention_bias", false},
        {"embd_pdrop", 0.0},
        {"resid_pdrop", 0.0},
        {"sliding_window", 262144}}},
      {"smollm3", {{"max_window_layers", 28}, {"pretraining_tp", 2}, {"no_rope_layer_interval", 4}}},
      {"granite", {{"attention_multiplier", 0.015625}, {"embedding_multiplier", 12.0}, {"logits_scaling", 8.0}}},
      // Qwen3-Coder-30B-A3B.
      {"qwen3_moe",
       {{"use_qk_norm", true},
        {"qkv_bias", false},
        {"shared_expert_intermediate_size", 0},
        {"router_aux_loss_coef", 0.001},
        {"max_window_layers", 48},
        {"output_router_logits", false},
        {"mlp_only_layers", json::array()}}},
  };
  for (const Published& file : files) {
    json config = Config(file.family, common);
    config.update(file.fields);
    MustParse(config);
  }
}

TEST(ModelConfigTest, ARefusalSaysWhatToDo) {
  EXPECT_EQ(std::string(ParseModelConfig(Config("llama", {{"attention_chunk_size", 8192}})).status().message()),
            "config.json: attention_chunk_size: 8192 is not supported for model_type llama; remove the field from "
            "config.json if the model computes the same without it");
}

TEST(ModelConfigTest, TwoGenerationsOfRopeSettingsInOneFileMustAgree) {
  const json linear = {{"type", "linear"}, {"factor", 2.0}};
  const json both = {{"rope_theta", 500.0},
                     {"rope_scaling", linear},
                     {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 500.0}}}};
  EXPECT_EQ(MustParse(Config("llama", both)).ropes[0].factor, 2.0);
  for (const char* changed :
       {R"({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}})",
        R"({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})", R"({"rope_theta": 400.0})"}) {
    json other = both;
    other.update(json::parse(changed));
    const absl::Status status = ParseModelConfig(Config("llama", other)).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("remove the one that is wrong")) << changed;
  }
  EXPECT_THAT(std::string(ParseModelConfig(Config("gemma3_text", {{"rope_scaling", linear},
                                                                  {"rope_parameters", {{"full_attention", linear}}}}))
                              .status()
                              .message()),
              HasSubstr("rope_scaling"));
}

TEST(ModelConfigTest, UnknownFamiliesAreRefusedWithTheKnownOnes) {
  EXPECT_THAT(std::string(ParseModelConfig(Config("mixtral")).status().message()),
              HasSubstr("supported: gemma2, gemma3_text"));
  EXPECT_THAT(std::string(ParseModelConfig(Config("gemma3")).status().message()), HasSubstr("images"));
  EXPECT_FALSE(ParseModelConfig(json::array()).ok());
}

TEST(ModelConfigTest, ReadsBothGenerationsOfRopeSettings) {
  const json v4 = Config("llama", {{"rope_theta", 500000.0}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}});
  const json v5 =
      Config("llama", {{"rope_parameters", {{"rope_theta", 500000.0}, {"rope_type", "linear"}, {"factor", 2.0}}}});
  for (const json& json : {v4, v5}) {
    const ModelConfig config = MustParse(json);
    ASSERT_EQ(config.ropes.size(), 1u);
    EXPECT_EQ(config.ropes[0].theta, 500000.0);
    EXPECT_EQ(config.ropes[0].type, RopeConfig::Type::kLinear);
    EXPECT_EQ(config.ropes[0].factor, 2.0);
    EXPECT_EQ(config.ropes[0].rotary_dim, 4);
  }
}

TEST(ModelConfigTest, GemmasTwoFrequencyBasesInBothGenerations) {
  const json v4 = Config("gemma3_text", {{"rope_theta", 500.0},
                                         {"rope_local_base_freq", 20.0},
                                         {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}});
  const json v5 =
      Config("gemma3_text", {{"rope_parameters",
                              {{"full_attention", {{"rope_theta", 500.0}, {"rope_type", "linear"}, {"factor", 8.0}}},
                               {"sliding_attention", {{"rope_theta", 20.0}, {"rope_type", "default"}}}}}});
  for (const json& json : {v4, v5}) {
    const ModelConfig config = MustParse(json);
    ASSERT_EQ(config.ropes.size(), 2u);
    EXPECT_EQ(config.ropes[0].theta, 500.0);
    EXPECT_EQ(config.ropes[0].factor, 8.0);
    EXPECT_EQ(config.ropes[1].theta, 20.0);
    EXPECT_EQ(config.ropes[1].type, RopeConfig::Type::kDefault);
    EXPECT_EQ(config.layers[0].rope, 1u);  // layers 0 to 4 of 6 slide
  }
}

// arXiv:2309.00071, equation 22, and the LongRoPE ratio, as transformers settles them.
TEST(ModelConfigTest, AttentionFactorsAreSettled) {
  const auto rope = [](const char* family, const json& scaling) {
    return MustParse(Config(family, {{"rope_scaling", scaling}})).ropes[0];
  };
  EXPECT_DOUBLE_EQ(
      rope("qwen2", {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}}).attention_factor,
      0.1 * std::log(4.0) + 1);
  EXPECT_DOUBLE_EQ(rope("qwen2", {{"type", "yarn"}, {"factor", 4.0}, {"attention_factor", 1.5}}).attention_factor, 1.5);
  EXPECT_DOUBLE_EQ(
      rope("qwen2", {{"type", "yarn"}, {"factor", 4.0}, {"mscale", 0.7}, {"mscale_all_dim", 0.0}}).attention_factor,
      0.1 * std::log(4.0) + 1)
      << "0 says nothing";
  json phi = Config(
      "phi3", {{"rope_scaling", {{"type", "longrope"}, {"short_factor", {1.0, 1.0}}, {"long_factor", {2.0, 4.0}}}}});
  EXPECT_EQ(MustParse(phi).ropes[0].original_max_position_embeddings, 4096);
  phi["rope_scaling"]["original_max_position_embeddings"] = 32;
  EXPECT_THAT(std::string(ParseModelConfig(phi).status().message()),
              HasSubstr("rope_scaling.original_max_position_embeddings: 32 does not count"));
  phi["original_max_position_embeddings"] = 16;
  const RopeConfig longrope = MustParse(phi).ropes[0];
  EXPECT_DOUBLE_EQ(longrope.attention_factor, std::sqrt(1 + std::log(4.0) / std::log(16.0)));
  EXPECT_THAT(longrope.long_factors, ElementsAre(2.0, 4.0));
}

// A length of pre-training beside the block goes before the one in it, but not where kinds of layers have a block each.
TEST(ModelConfigTest, WhatNoTypeOfRopeReadsChangesNothing) {
  const json linear = {
      {"type", "linear"}, {"factor", 4.0}, {"finetuned", true}, {"original_max_position_embeddings", 16}};
  EXPECT_EQ(MustParse(Config("llama", {{"rope_scaling", linear}})).ropes[0].factor, 4.0);
}

TEST(ModelConfigTest, ALengthBesideTheBlockCountsWhereThereIsOneBlock) {
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}};
  const json beside = {{"rope_scaling", yarn}, {"original_max_position_embeddings", 32}};
  EXPECT_EQ(MustParse(Config("qwen2", beside)).ropes[0].original_max_position_embeddings, 32);
  EXPECT_EQ(MustParse(Config("gemma3_text", beside)).ropes[0].original_max_position_embeddings, 16);
}

TEST(ModelConfigTest, AWindowThatIsLeftOutIsTheFamilysDefaultAndNullIsNone) {
  EXPECT_THAT(Windows(MustParse(Config("mistral"))), ElementsAre(4096, 4096, 4096, 4096));
  EXPECT_THAT(Windows(MustParse(Config("mistral", {{"sliding_window", nullptr}}))), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Windows(MustParse(Config("phi3"))), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Windows(MustParse(Config("gemma2", {{"sliding_window", 3}}))), ElementsAre(3, 0, 3, 0));
  EXPECT_THAT(Windows(MustParse(Config("gemma3_text", {{"sliding_window", 3}, {"sliding_window_pattern", 2}}))),
              ElementsAre(3, 0, 3, 0));
}

// Where the list counts in transformers, which makes a Ministral of a Mistral that has one, and where it does not.
TEST(ModelConfigTest, LayersSlideWhereTheListSaysSoInTheFamiliesThatReadIt) {
  const json full = {"full_attention", "full_attention", "full_attention", "full_attention"},
             mixed = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  const auto windows = [](const std::string& family, const json& types) {
    json fields = {{"sliding_window", 3}, {"layer_types", types}};
    if (family.starts_with("qwen") || family == "smollm3") fields["use_sliding_window"] = true;
    return Windows(MustParse(Config(family, fields)));
  };
  for (const char* family : {"mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"}) {
    EXPECT_THAT(windows(family, full), ElementsAre(0, 0, 0, 0)) << family;
    EXPECT_THAT(windows(family, mixed), ElementsAre(0, 3, 0, 0)) << family;
  }
  for (const char* family : {"phi3", "qwen3_moe"})
    EXPECT_THAT(windows(family, full), ElementsAre(3, 3, 3, 3)) << family;
  const json unused = {{"sliding_window", 3}, {"layer_types", mixed}};
  EXPECT_THAT(std::string(ParseModelConfig(Config("qwen2", unused)).status().message()),
              HasSubstr("sliding_window: does not count without use_sliding_window, and layer 1"));
}

TEST(ModelConfigTest, QwenSlidesOnlyWhereItIsToldTo) {
  EXPECT_THAT(Windows(MustParse(Config("qwen2", {{"sliding_window", 3}, {"max_window_layers", 2}}))),
              ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Windows(MustParse(
                  Config("qwen2", {{"sliding_window", 3}, {"max_window_layers", 2}, {"use_sliding_window", true}}))),
              ElementsAre(0, 0, 3, 3));
  EXPECT_THAT(
      Windows(MustParse(Config(
          "qwen3", {{"sliding_window", 3},
                    {"use_sliding_window", true},
                    {"layer_types", {"sliding_attention", "full_attention", "full_attention", "sliding_attention"}}}))),
      ElementsAre(3, 0, 0, 3));
}

TEST(ModelConfigTest, SmolLm3RotatesWhereTheListSaysOne) {
  const ModelConfig by_interval = MustParse(Config("smollm3"));
  EXPECT_TRUE(by_interval.layers[2].rope.has_value());
  EXPECT_FALSE(by_interval.layers[3].rope.has_value());
  const ModelConfig by_list = MustParse(Config("smollm3", {{"no_rope_layers", {0, 1, 1, 1}}}));
  EXPECT_FALSE(by_list.layers[0].rope.has_value());
  EXPECT_TRUE(by_list.layers[3].rope.has_value());
  EXPECT_TRUE(by_list.tie_word_embeddings);
}

// What a layer sees and how it rotates, with 0 for no window and for no rotation.
std::vector<double> PerLayer(const json& values) {
  std::vector<double> numbers;
  for (const json& value : values) numbers.push_back(value.is_null() ? 0 : value.get<double>());
  return numbers;
}

void ExpectExperts(const ModelConfig& config, const json& expected) {
  ASSERT_EQ(config.experts.has_value(), !expected.is_null());
  if (expected.is_null()) return;
  EXPECT_EQ(config.experts->count, expected.at("count"));
  EXPECT_EQ(config.experts->per_token, expected.at("per_token"));
  EXPECT_EQ(config.experts->intermediate_size, expected.at("intermediate_size"));
  EXPECT_EQ(config.experts->normalize, expected.at("normalize"));
  for (size_t i = 0; i < config.layers.size(); ++i) EXPECT_EQ(config.layers[i].experts, expected.at("layers").at(i));
}

// tests/reference/config_defaults.py asked transformers.
TEST(ModelConfigTest, WhatAConfigLeavesOutIsWhatTransformersTakes) {
  std::ifstream file("tests/fixtures/config_defaults.json");
  const json defaults = json::parse(file);
  ASSERT_EQ(defaults.at("families").size(), FamilyNames().size());
  for (const std::string& family : FamilyNames()) {
    SCOPED_TRACE(family);
    json given = defaults.at("given");
    given["model_type"] = family;
    const ModelConfig config = MustParse(given);
    const json& expected = defaults.at("families").at(family);
    EXPECT_EQ(config.num_kv_heads, expected.at("num_key_value_heads"));
    EXPECT_EQ(config.head_dim, expected.at("head_dim"));
    EXPECT_EQ(config.max_position_embeddings, expected.at("max_position_embeddings"));
    EXPECT_EQ(config.rms_norm_eps, expected.at("rms_norm_eps"));
    EXPECT_EQ(config.tie_word_embeddings, expected.at("tie_word_embeddings"));
    EXPECT_EQ(config.attention_bias, expected.at("attention_bias"));
    EXPECT_EQ(config.mlp_bias, expected.at("mlp_bias"));
    EXPECT_EQ(config.activation, expected.at("activation").get<std::string>());
    EXPECT_DOUBLE_EQ(config.attention_scale, expected.at("attention_scale").get<double>());
    EXPECT_EQ(config.attention_softcap, expected.at("attention_softcap"));
    EXPECT_EQ(config.attention_dropout, expected.at("attention_dropout"));
    EXPECT_DOUBLE_EQ(config.embedding_scale, expected.at("embedding_scale").get<double>());
    EXPECT_EQ(config.padding_token ? json(*config.padding_token) : json(), expected.at("padding_token"));
    EXPECT_EQ(config.residual_scale, expected.at("residual_scale"));
    EXPECT_EQ(config.logit_scale, expected.at("logit_scale"));
    EXPECT_EQ(config.logit_softcap, expected.at("logit_softcap"));
    std::vector<double> windows, thetas;
    for (const LayerConfig& layer : config.layers) {
      windows.push_back(static_cast<double>(layer.window.value_or(0)));
      thetas.push_back(layer.rope ? config.ropes.at(*layer.rope).theta : 0);
    }
    EXPECT_EQ(windows, PerLayer(expected.at("windows")));
    EXPECT_EQ(thetas, PerLayer(expected.at("thetas")));
    ExpectExperts(config, expected.at("experts"));
  }
}

// transformers takes a family's number where the field is missing, and every head where it is null.
TEST(ModelConfigTest, KeyHeadsThatAreNullAreAsManyAsTheOthersAndAMissingNumberThatCannotBeIsNamed) {
  EXPECT_EQ(MustParse(Config("mistral", {{"num_key_value_heads", nullptr}})).num_kv_heads, 2);
  json without = Config("mistral");
  without.erase("num_key_value_heads");
  EXPECT_THAT(std::string(ParseModelConfig(without).status().message()),
              HasSubstr("num_key_value_heads: is missing, which means 8"));
}

TEST(ModelConfigTest, APaddingTokenBelowZeroCountsFromTheEndAndOneThatCannotBeIsNamed) {
  EXPECT_EQ(MustParse(Config("llama")).padding_token, std::nullopt);
  EXPECT_EQ(MustParse(Config("llama", {{"pad_token_id", 9}})).padding_token, 9);
  EXPECT_EQ(MustParse(Config("llama", {{"pad_token_id", -1}})).padding_token, 9);
  json without = Config("phi3");
  without.erase("pad_token_id");
  EXPECT_EQ(std::string(ParseModelConfig(without).status().message()),
            "config.json: pad_token_id: is missing, which means 32000, no token of the 10 of vocab_size; give one of "
            "them, or null if no token is for padding only");
}

TEST(ModelConfigTest, TheHeadIsTiedAsTheFamilysDefaultSays) {
  EXPECT_TRUE(MustParse(Config("gemma2")).tie_word_embeddings);
  EXPECT_FALSE(MustParse(Config("llama")).tie_word_embeddings);
  EXPECT_FALSE(MustParse(Config("gemma2", {{"tie_word_embeddings", false}})).tie_word_embeddings);
}

TEST(ModelConfigTest, MixturesStandWhereTheConfigPutsThem) {
  const ModelConfig config = MustParse(Config("qwen3_moe", {{"num_experts", 4},
                                                            {"num_experts_per_tok", 2},
                                                            {"moe_intermediate_size", 6},
                                                            {"decoder_sparse_step", 2},
                                                            {"mlp_only_layers", {1}}}));
  EXPECT_FALSE(config.layers[0].experts);
  EXPECT_FALSE(config.layers[1].experts);
  EXPECT_TRUE(config.layers[3].experts);
  const auto tensors = CheckpointTensors(config);
  EXPECT_THAT(tensors.at("model.layers.3.mlp.experts.2.down_proj.weight"), ElementsAre(8, 6));
  EXPECT_THAT(tensors.at("model.layers.3.mlp.gate.weight"), ElementsAre(4, 8));
  EXPECT_THAT(tensors.at("model.layers.1.mlp.gate_proj.weight"), ElementsAre(16, 8));
  EXPECT_FALSE(tensors.contains("model.layers.3.mlp.gate_proj.weight"));
}

// As PEFT 0.21 sees it with transformers 5: by the names of its MLPs it would adapt the experts.
TEST(ModelConfigTest, OfAModelWithExpertsOnlyAttentionIsModules) {
  const ModelConfig config = MustParse(Config(
      "qwen3_moe",
      {{"num_experts", 4}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 6}, {"mlp_only_layers", {0, 1, 2}}}));
  EXPECT_THAT(LinearLayerNames(config), ElementsAre("k_proj", "o_proj", "q_proj", "v_proj"));
  std::vector<std::string> names;
  for (const LinearLayer& layer : ParameterLayers(config)) {
    if (layer.layer >= 2) names.push_back(layer.name());
  }
  EXPECT_THAT(names, ElementsAre("model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight",
                                 "model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.gate.weight",
                                 "model.layers.3.mlp.experts.gate_up_proj", "model.layers.3.mlp.experts.down_proj"));
  const LinearLayer gate_up = ParameterLayers(config)[10];
  EXPECT_EQ(gate_up.in, 8);
  EXPECT_EQ(gate_up.out, 2 * 6);
  EXPECT_EQ(gate_up.matrices(), 4);
}

TEST(ModelConfigTest, PhisFusedProjectionsHaveThePartsTogether) {
  const auto tensors = CheckpointTensors(MustParse(Config("phi3")));
  EXPECT_THAT(tensors.at("model.layers.0.self_attn.qkv_proj.weight"), ElementsAre(8 + 2 * 4, 8));
  EXPECT_THAT(tensors.at("model.layers.0.mlp.gate_up_proj.weight"), ElementsAre(32, 8));
  EXPECT_THAT(LinearLayerNames(MustParse(Config("phi3"))),
              ElementsAre("down_proj", "gate_up_proj", "o_proj", "qkv_proj"));
}

}  // namespace
}  // namespace luthier
