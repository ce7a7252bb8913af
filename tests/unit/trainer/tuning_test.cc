#include "worker/trainer/train/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "lib/plan/adapter_plan.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temp_folder.h"
#include "worker/trainer/train/adamw.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A settled recipe.
Recipe Settled(const std::string& tuning) {
  Recipe recipe;
  recipe.tuning = tuning;
  recipe.training.seed = 3;
  if (tuning == "full") return recipe;
  recipe.lora.rank = 2;
  recipe.lora.alpha = 4;
  recipe.lora.dropout = 0;
  recipe.lora.rslora = false;
  return recipe;
}

PackedBatch Batch() { return BatchOf({{1, 5, 30, 12, 9, 33, 2}}); }

Tuning MustMake(const Recipe& recipe, const ModelFixture& fixture, const std::string& start = "") {
  absl::StatusOr<Tuning> tuning = MakeTuning(recipe, fixture.config, fixture.base, "base", start);
  EXPECT_TRUE(tuning.ok()) << tuning.status();
  return *std::move(tuning);
}

std::string Refusal(const Recipe& recipe, const ModelFixture& fixture, const std::string& start = "") {
  return std::string(MakeTuning(recipe, fixture.config, fixture.base, "base", start).status().message());
}

// Weights that may be written to: the fixture's are the mapped file.
NamedTensors Copy(const NamedTensors& weights) {
  NamedTensors copies;
  for (const auto& [name, tensor] : weights) copies[name] = tensor.clone();
  return copies;
}

TEST(TuningTest, FrozenWeightsGetNoGradientAndTheOthersDo) {
  ModelFixture fixture("qwen2");
  fixture.base = Copy(fixture.base);
  Recipe recipe = Settled("full");
  recipe.training.freeze = {"model.embed_tokens", R"(model\.layers\.0)", R"(.*\.bias)"};
  const Tuning tuning = MustMake(recipe, fixture);
  EXPECT_FALSE(tuning.trained.contains("model.embed_tokens.weight"));
  EXPECT_FALSE(tuning.trained.contains("model.layers.0.mlp.up_proj.weight"));
  EXPECT_FALSE(tuning.trained.contains("model.layers.1.self_attn.q_proj.bias"));
  EXPECT_TRUE(tuning.trained.contains("model.layers.1.self_attn.q_proj.weight"));
  SumLoss(*tuning.model, Batch()).backward();
  for (const auto& [name, tensor] : fixture.base)
    EXPECT_EQ(tensor.grad().defined(), tuning.trained.contains(name)) << name;
}

TEST(TuningTest, PatternsThatFreezeNothingOrEverythingAreRefused) {
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("full");
  recipe.training.freeze = {"model.embed_token"};  // neither a name nor a beginning that ends before a dot
  EXPECT_THAT(Refusal(recipe, fixture), HasSubstr("training.freeze: 'model.embed_token' matches no weight"));
  recipe.training.freeze = {".*"};
  EXPECT_THAT(Refusal(recipe, fixture), HasSubstr("nothing is left to train"));
  recipe.training.freeze = {"("};
  EXPECT_THAT(Refusal(recipe, fixture), HasSubstr("no regular expression"));
}

TEST(TuningTest, AWarmStartComputesWhatTheAdapterDid) {
  at::NoGradGuard no_grad;
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("lora");
  const Tuning tuning = MustMake(recipe, fixture, fixture.folder + "/adapter_final");
  EXPECT_TRUE(at::equal(Logits(*tuning.model, Batch()), Logits(*fixture.tuned, Batch())));
  EXPECT_EQ(tuning.trained.size(), fixture.adapter.tensors.size());
}

TEST(TuningTest, AnAdapterThatIsNotWhatTheJobAsksForIsRefused) {
  const ModelFixture fixture("llama");
  const std::string start = fixture.folder + "/adapter_final";
  Recipe recipe = Settled("lora");
  recipe.lora.rank = 3;
  EXPECT_THAT(Refusal(recipe, fixture, start), HasSubstr("r is 2, the job asks for 3"));
  recipe = Settled("lora");
  recipe.lora.target_modules = {"q_proj"};
  EXPECT_THAT(Refusal(recipe, fixture, start), HasSubstr("which the job does not target"));
}

// Bug 26: also where it goes on from an adapter of a base with another name.
TEST(TuningTest, TheAdapterNamesItsBase) {
  const ModelFixture fixture("llama");
  EXPECT_EQ(MustMake(Settled("lora"), fixture).adapter.config.base_model_name, "base");
  ASSERT_NE(fixture.adapter.config.base_model_name, "base");
  const Tuning warm = MustMake(Settled("lora"), fixture, fixture.folder + "/adapter_final");
  EXPECT_EQ(warm.adapter.config.base_model_name, "base");
}

TEST(TuningTest, NamesAndExpertsAreAsPeftHasThem) {
  const ModelFixture phi("phi3"), moe("qwen3_moe");
  EXPECT_THAT(MustMake(Settled("lora"), phi).adapter.config.target_modules,
              ::testing::ElementsAre("down_proj", "gate_up_proj", "o_proj", "qkv_proj"));
  EXPECT_THAT(MustMake(Settled("lora"), moe).adapter.config.target_modules,
              ::testing::ElementsAre("k_proj", "o_proj", "q_proj", "v_proj"));
  Recipe recipe = Settled("lora");
  recipe.lora.target_modules = {"gate_proj"};
  EXPECT_THAT(Refusal(recipe, moe), HasSubstr("names experts, which are parameters"));
}

TEST(TuningTest, ExpertsGoOnWhereTheyEnded) {
  at::NoGradGuard no_grad;
  for (const std::string name : {"qwen3_moe_experts", "qwen3_moe_router"}) {
    const ModelFixture fixture(name, "tests/fixtures/adapters/");
    Recipe recipe = Settled("lora");
    TakeShapeOf(fixture.adapter.config, recipe.lora);
    const Tuning tuning = MustMake(recipe, fixture, fixture.folder + "/adapter_final");
    EXPECT_TRUE(at::equal(Logits(*tuning.model, Batch()), Logits(*fixture.tuned, Batch()))) << name;
  }
}

// PEFT gives what is adapted alone the same names, whichever of the two it is.
TEST(TuningTest, TheOtherParameterOfExpertsIsNoWarmStart) {
  const ModelFixture fixture("qwen3_moe_router", "tests/fixtures/adapters/");
  Recipe recipe = Settled("lora");
  TakeShapeOf(fixture.adapter.config, recipe.lora);
  ASSERT_EQ(recipe.lora.target_parameters[0], "layers.0.mlp.experts.down_proj");
  recipe.lora.target_parameters[0] = "mlp.experts.gate_up_proj";
  EXPECT_THAT(Refusal(recipe, fixture, fixture.folder + "/adapter_final"),
              HasSubstr("has base_model.model.model.layers.0.mlp.experts.lora_A.weight of another layer"));
}

// LoRA+: one step of AdamW moves B `ratio` times as far as it would alone, and A as far as before.
TEST(TuningTest, LoraPlusMovesBFasterThanA) {
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("lora");
  const auto moved = [&](std::optional<double> ratio) {
    recipe.lora.plus_ratio = ratio;
    const Tuning tuning = MustMake(recipe, fixture, fixture.folder + "/adapter_final");
    AdamW::Options options;
    options.rate_factors = LearningRateFactors(recipe, tuning.trained);
    AdamW optimizer(tuning.trained, options);
    SumLoss(*tuning.model, Batch()).backward();
    optimizer.Step(1e-3);
    NamedTensors moves;
    for (const auto& [name, tensor] : tuning.trained) moves[name] = tensor.detach() - fixture.adapter.tensors.at(name);
    return moves;
  };
  const NamedTensors plain = moved(std::nullopt), plus = moved(4);
  for (const auto& [name, move] : plain) {
    const double factor = name.find("lora_B") != std::string::npos ? 4 : 1;
    EXPECT_LT((plus.at(name) - factor * move).abs().max().item<double>(), 1e-6) << name;
    EXPECT_GT(move.abs().max().item<double>(), 1e-4) << name;
  }
}

// The rates of PEFT's create_loraplus_optimizer for the same adapter (0.21.2).
TEST(TuningTest, LoraPlusGivesEachTensorTheRateThatPeftGivesIt) {
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("lora");
  recipe.lora.target_modules = {"embed_tokens", "q_proj"};
  recipe.lora.modules_to_save = {"model.norm", "lm_head"};
  recipe.lora.dora = true;
  recipe.lora.plus_ratio = 4;
  recipe.training.learning_rate = 2e-3;
  const Tuning tuning = MustMake(recipe, fixture);
  const std::map<std::string, double> factors = LearningRateFactors(recipe, tuning.trained);
  const std::map<std::string, double> rates = {
      {"model.layers.0.self_attn.q_proj.lora_A.weight", 2e-3},
      {"model.layers.0.self_attn.q_proj.lora_B.weight", 8e-3},
      {"model.layers.0.self_attn.q_proj.lora_magnitude_vector", 8e-3},
      {"model.embed_tokens.lora_embedding_A", 1e-6},
      {"model.embed_tokens.lora_embedding_B", 1e-6},
      {"model.embed_tokens.lora_magnitude_vector", 8e-3},
      {"model.norm.weight", 8e-3},
      {"lm_head.weight", 2e-3},
  };
  for (const auto& [name, rate] : rates) {
    const std::string stored = "base_model.model." + name;
    ASSERT_TRUE(tuning.trained.contains(stored)) << name;
    const auto factor = factors.find(stored);
    EXPECT_DOUBLE_EQ(2e-3 * (factor == factors.end() ? 1 : factor->second), rate) << name;
  }
}

// What get_decay_parameter_names of transformers' Trainer (5.23.0) leaves out, for every family.
TEST(TuningTest, NormsAndBiasesDoNotDecayAndLengthsDo) {
  for (const std::string& family : FixtureFamilies()) {
    const ModelFixture fixture(family);
    const std::set<std::string> without = WithoutDecay(fixture.base);
    for (const auto& [name, tensor] : fixture.base) {
      const bool norm_or_bias = absl::StrContains(name, "norm.") || absl::EndsWith(name, ".bias");
      EXPECT_EQ(without.contains(name), norm_or_bias) << family << " " << name;
    }
    Recipe recipe = Settled("lora");
    recipe.lora.dora = true;
    recipe.lora.target_modules = {"o_proj"};
    recipe.lora.modules_to_save = {"model.norm", "embed_tokens"};
    EXPECT_THAT(WithoutDecay(MustMake(recipe, fixture).trained), ElementsAre("base_model.model.model.norm.weight"));
  }
}

// A job's patterns are sorted, and PEFT's are not.
TEST(TuningTest, AWarmStartWhoseOverlappingPatternsHaveAnotherOrderIsRefused) {
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("lora");
  recipe.lora.alpha_pattern = {{"layers.1.self_attn.q_proj", 3}, {"q_proj", 5}};
  Adapter adapter = fixture.adapter;
  adapter.config.alpha_pattern = {{"layers.1.self_attn.q_proj", 3}, {"q_proj", 5}};
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  MustMake(recipe, fixture, folder.path());
  std::swap(adapter.config.alpha_pattern[0], adapter.config.alpha_pattern[1]);
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  EXPECT_THAT(Refusal(recipe, fixture, folder.path()),
              HasSubstr("scales model.layers.1.self_attn.q_proj by 2.5, the job asks for 1.5"));
}

TEST(TuningTest, AnEmbeddingLearnsAndGoesOnWhereItEnded) {
  const ModelFixture fixture("llama_embedding", "tests/fixtures/adapters/");
  Recipe recipe = Settled("lora");
  recipe.lora.rslora = true;
  recipe.lora.target_modules = {"embed_tokens", "q_proj", "lm_head"};
  const Tuning tuning = MustMake(recipe, fixture, fixture.folder + "/adapter_final");
  {
    at::NoGradGuard no_grad;
    EXPECT_TRUE(at::equal(Logits(*tuning.model, Batch()), Logits(*fixture.tuned, Batch())));
  }
  SumLoss(*tuning.model, Batch()).backward();
  for (const auto& [name, tensor] : tuning.trained) EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
}

TEST(TuningTest, AWarmStartKeepsAPatternThatExcludes) {
  const ModelFixture fixture("llama");
  Recipe recipe = Settled("lora");
  recipe.lora.exclude_pattern = R"(.*\.layers\.0\..*)";
  const Tuning first = MustMake(recipe, fixture);
  EXPECT_FALSE(first.trained.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(first.adapter, folder.path()).ok());
  Recipe again = Settled("lora");
  TakeShapeOf(*ReadAdapterConfig(folder.path()), again.lora);
  const Tuning second = MustMake(again, fixture, folder.path());
  EXPECT_EQ(second.adapter.config.exclude_regex, recipe.lora.exclude_pattern);
  EXPECT_EQ(second.trained.size(), first.trained.size());
}

}  // namespace
}  // namespace luthier
