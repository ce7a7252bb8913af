// Adapters in a whole model, with every option, against what the formulas say.
#include "worker/trainer/lora/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/checkpoint/model_tensors.h"
#include "tests/support/temp_folder.h"
#include "worker/trainer/models/common/embedding.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/batch.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

ModelConfig TinyConfig(bool tied = true) {
  return *ParseModelConfig({{"model_type", "llama"},
                            {"vocab_size", 31},
                            {"hidden_size", 16},
                            {"intermediate_size", 24},
                            {"num_hidden_layers", 2},
                            {"num_attention_heads", 4},
                            {"num_key_value_heads", 2},
                            {"tie_word_embeddings", tied}});
}

// Two layers with 4 experts of which a token takes 2, and one without.
ModelConfig Mixture() {
  return *ParseModelConfig({{"model_type", "qwen3_moe"},
                            {"vocab_size", 31},
                            {"hidden_size", 16},
                            {"intermediate_size", 24},
                            {"moe_intermediate_size", 6},
                            {"num_experts", 4},
                            {"num_experts_per_tok", 2},
                            {"norm_topk_prob", true},
                            {"num_hidden_layers", 3},
                            {"mlp_only_layers", {1}},
                            {"num_attention_heads", 4},
                            {"num_key_value_heads", 2},
                            {"head_dim", 4}});
}

AdapterConfig OnExperts() {
  AdapterConfig lora;
  lora.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  return lora;
}

AdapterConfig AllLinear() {
  AdapterConfig lora;
  lora.all_linear = true;
  return lora;
}

// Numbers that make every factor matter: fresh adapters have B = 0.
void Fill(Adapter& adapter) {
  at::manual_seed(7);
  for (auto& [name, tensor] : adapter.tensors) {
    const bool magnitude = name.ends_with("lora_magnitude_vector");
    if (magnitude) {
      tensor.mul_(at::rand_like(tensor) + 0.5);
    } else {
      tensor.normal_(0, 0.3);
    }
  }
}

Adapter MakeFilled(const AdapterConfig& config, const ModelConfig& model, const NamedTensors& base, uint64_t seed = 4) {
  absl::StatusOr<Adapter> adapter = MakeAdapter(config, model, base, seed);
  EXPECT_TRUE(adapter.ok()) << adapter.status();
  Fill(*adapter);
  return *std::move(adapter);
}

const Example& Document() {
  static const Example document{{1, 2, 3, 4, 5, 9, 14, 30}, {0, 1, 1, 1, 1, 0, 1, 1}};
  return document;
}

PackedBatch Batch() { return MakePackedBatch({&Document()}, at::kCPU); }

double MaxDiff(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// Two jobs on one base: what each adapter computes must not depend on the other's tokens in the same pass.
TEST(LoraTest, EachSliceGoesThroughItsOwnAdapter) {
  at::NoGradGuard no_grad;
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora = AllLinear();
  const Adapter first = MakeFilled(lora, config, weights);
  lora.rank = 3;
  const Adapter second = MakeFilled(lora, config, weights, 5);
  const auto both = *MakeTunedModel(config, weights, {&first, &second});
  const auto only_second = *MakeTunedModel(config, weights, {&second});
  const Example a{{1, 2, 3, 4, 5}, {0, 1, 1, 1, 1}}, b{{6, 7, 8}, {0, 1, 1}};
  const PackedBatch together = MakePackedBatch({&a, &b}, at::kCPU), alone = MakePackedBatch({&b}, at::kCPU);
  const auto attention_together = std::make_shared<DocumentAttention>(together.documents);
  const auto attention_alone = std::make_shared<DocumentAttention>(alone.documents);
  const Tensor h = both->Forward(together.tokens_T, together.positions_T, together.lengths_T, attention_together,
                                 {{0, 0, 5}, {1, 5, 8}});
  const Tensor expected =
      only_second->Forward(alone.tokens_T, alone.positions_T, alone.lengths_T, attention_alone, {{0, 0, 3}});
  EXPECT_LT(MaxDiff(h.slice(0, 5), expected), 1e-5);
}

TEST(LoraTest, EachSliceIsLookedUpInItsOwnAdapter) {
  at::NoGradGuard no_grad;
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"embed_tokens"};
  const Adapter embedding = MakeFilled(lora, config, weights), linears = MakeFilled(AllLinear(), config, weights, 5);
  const auto both = *MakeTunedModel(config, weights, {&embedding, &linears});
  const Example document{{1, 2, 3, 4, 5}, {0, 1, 1, 1, 1}};
  const PackedBatch together = MakePackedBatch({&document, &document}, at::kCPU),
                    alone = MakePackedBatch({&document}, at::kCPU);
  const Tensor h = both->Forward(together.tokens_T, together.positions_T, together.lengths_T,
                                 std::make_shared<DocumentAttention>(together.documents), {{0, 0, 5}, {1, 5, 10}});
  for (const auto& [adapter, begin] : {std::pair(&embedding, 0), std::pair(&linears, 5)}) {
    const auto model = *MakeTunedModel(config, weights, {adapter});
    const Tensor expected = model->Forward(alone.tokens_T, alone.positions_T, alone.lengths_T,
                                           std::make_shared<DocumentAttention>(alone.documents), {{0, 0, 5}});
    EXPECT_LT(MaxDiff(h.slice(0, begin, begin + 5), expected), 1e-5) << begin;
  }
}

TEST(LoraTest, AFreshAdapterLeavesTheModelAsItIs) {
  at::NoGradGuard no_grad;
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  const Tensor expected = Logits(**MakeModel(config, weights, {}), Batch());
  AdapterConfig lora = AllLinear();
  const Adapter plain = *MakeAdapter(lora, config, weights, 4);
  EXPECT_TRUE(at::equal(Logits(**MakeTunedModel(config, weights, {&plain}), Batch()), expected));
  AdapterConfig lookup;
  lookup.target_modules = {"embed_tokens"};
  const Adapter embedding = *MakeAdapter(lookup, config, weights, 4);
  EXPECT_TRUE(at::equal(Logits(**MakeTunedModel(config, weights, {&embedding}), Batch()), expected));
  // B of an embedding is what differs from 0: else A, which a token sees, would have no gradient.
  const Tensor b_DR = embedding.tensors.at("base_model.model.model.embed_tokens.lora_embedding_B");
  EXPECT_NEAR(b_DR.std().item<double>(), 1, 0.3);
  const ModelConfig mixture = Mixture();
  const NamedTensors mixed = RandomWeights(mixture, 3);
  const Adapter experts = *MakeAdapter(OnExperts(), mixture, mixed, 4);
  EXPECT_TRUE(at::equal(Logits(**MakeTunedModel(mixture, mixed, {&experts}), Batch()),
                        Logits(**MakeModel(mixture, mixed, {}), Batch())));
  const Tensor& a = experts.tensors.at("base_model.model.model.layers.0.mlp.experts.lora_A.weight");
  EXPECT_NEAR(a.abs().max().item<double>(), 1 / std::sqrt(6.0), 0.02);  // by the inputs of one expert
  lora.dora = true;
  lora.modules_to_save = {"embed_tokens", "lm_head"};
  const Adapter everything = *MakeAdapter(lora, config, weights, 4);
  EXPECT_LT(MaxDiff(Logits(**MakeTunedModel(config, weights, {&everything}), Batch()), expected), 1e-6);
}

// Found by the export's own check: with dropout left on, a reloaded adapter computed other logits than the trained one.
TEST(LoraTest, DropoutActsInTrainingOnly) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  for (const bool dora : {false, true}) {
    AdapterConfig lora = AllLinear();
    lora.dropout = 0.5;
    lora.dora = dora;
    const Adapter adapter = MakeFilled(lora, config, weights);
    const auto model = *MakeTunedModel(config, weights, {&adapter});
    EXPECT_FALSE(at::equal(Logits(*model, Batch()), Logits(*model, Batch())));
    at::NoGradGuard no_grad;
    EXPECT_TRUE(at::equal(Logits(*model, Batch()), Logits(*model, Batch())));
  }
}

// One linear layer: forward and gradients of every input against PEFT's formula in recorded autograd.
class LinearTest : public ::testing::Test {
 protected:
  // `formula` computes the layer's output from the members, with the same dropout mask.
  void ExpectEqual(const LoraWeights& lora, const std::function<Tensor()>& formula) {
    const LoraLinear layer(weight_, bias_, {lora});
    std::vector<Tensor> inputs = {x_, lora.a_RI, lora.b_OR};
    if (lora.magnitude_O.defined()) inputs.push_back(lora.magnitude_O);
    const Tensor upstream = at::randn({9, 5});
    const auto gradients = [&](const std::function<Tensor()>& compute, Tensor& output) {
      at::manual_seed(11);
      output = compute();
      (output * upstream).sum().backward();
      std::vector<Tensor> result;
      for (const Tensor& input : inputs) {
        result.push_back(input.grad().clone());
        input.mutable_grad() = Tensor();
      }
      return result;
    };
    Tensor got, expected;
    const auto got_gradients = gradients([&] { return layer(x_, {{0, 0, 9}}); }, got);
    const auto expected_gradients = gradients(formula, expected);
    EXPECT_LT(MaxDiff(got, expected), 1e-5);
    for (size_t i = 0; i < inputs.size(); ++i)
      EXPECT_LT(MaxDiff(got_gradients[i], expected_gradients[i]), 2e-5) << "input " << i;

    // The same layer as a product, which the head's loss uses.
    const auto as_product = gradients(
        [&] {
          const auto [x, weight] = layer.AsProduct(x_, 0);
          return at::linear(x, weight, bias_);
        },
        got);
    EXPECT_LT(MaxDiff(got, expected), 1e-5);
    for (size_t i = 0; i < inputs.size(); ++i)
      EXPECT_LT(MaxDiff(as_product[i], expected_gradients[i]), 2e-5) << "input " << i;
  }

  // |row of W + s·B·A|, a constant to the gradient.
  Tensor Lengths() const { return (weight_ + 0.7 * at::mm(b_, a_)).norm(2, 1).detach(); }

  Tensor x_ = at::randn({9, 6}).set_requires_grad(true);
  Tensor weight_ = at::randn({5, 6}), bias_ = at::randn({5});
  Tensor a_ = at::randn({3, 6}).set_requires_grad(true), b_ = at::randn({5, 3}).set_requires_grad(true);
  Tensor magnitude_ = at::rand({5}).add_(0.5).set_requires_grad(true);
};

TEST_F(LinearTest, LoraWithABiasEqualsItsFormula) {
  ExpectEqual({a_, b_, 0.7, 0, {}}, [&] { return at::linear(x_, weight_ + 0.7 * at::mm(b_, a_), bias_); });
}

TEST_F(LinearTest, DoraEqualsItsFormula) {
  ExpectEqual({a_, b_, 0.7, 0, magnitude_},
              [&] { return at::linear(x_, weight_ + 0.7 * at::mm(b_, a_)) * (magnitude_ / Lengths()) + bias_; });
}

TEST_F(LinearTest, DoraWithDropoutEqualsPeftsFormula) {
  ExpectEqual({a_, b_, 0.7, 0.4, magnitude_}, [&] {
    const Tensor kept = at::dropout(x_, 0.4, true), factors = magnitude_ / Lengths();
    return at::linear(x_, weight_, bias_) + (factors - 1) * at::linear(kept, weight_) +
           factors * 0.7 * at::linear(at::linear(kept, a_), b_);
  });
}

// The embedding: forward and gradients against PEFT's formula in recorded autograd.
TEST(LoraTest, AnAdapterOnAnEmbeddingEqualsPeftsFormula) {
  const Tensor weight = at::randn({7, 5});
  const Tensor tokens = at::tensor(std::vector<int64_t>{3, 0, 3, 6}, at::kLong), upstream = at::randn({4, 5});
  const Tensor a = at::randn({2, 7}).set_requires_grad(true), b = at::randn({5, 2}).set_requires_grad(true);
  const Tensor magnitude = at::rand({5}).add_(0.5).set_requires_grad(true);
  constexpr double kScale = 0.7, kEmbeddingScale = 3;
  for (const bool dora : {false, true}) {
    const LoraWeights lora = {a, b, kScale, /*dropout=*/0.5, dora ? magnitude : Tensor()};  // nothing is dropped
    const Embedding embedding(weight, kEmbeddingScale, std::nullopt, {lora});
    const auto formula = [&] {
      const Tensor change = at::mm(at::embedding(a.t(), tokens), b.t()) * kScale;
      const Tensor sum = (at::embedding(weight, tokens) + change) * kEmbeddingScale;
      return dora ? sum * (magnitude / (weight.t() + kScale * at::mm(b, a)).norm(2, 1).detach()) : sum;
    };
    const auto gradients = [&](const Tensor& output) {
      (output * upstream).sum().backward();
      std::vector<Tensor> result;
      for (const Tensor& input : {a, b, magnitude}) {
        // The optimizer and the sum over ranks take gradients as one piece of memory.
        EXPECT_TRUE(!input.grad().defined() || input.grad().is_contiguous());
        result.push_back(input.grad().defined() ? input.grad().clone() : at::zeros_like(input));
        input.mutable_grad() = Tensor();
      }
      return result;
    };
    const Tensor got = embedding(tokens, {{0, 0, 4}}, std::nullopt), expected = formula();
    EXPECT_LT(MaxDiff(got, expected), 1e-5) << dora;
    const auto got_gradients = gradients(got), expected_gradients = gradients(expected);
    for (size_t i = 0; i < 3; ++i) EXPECT_LT(MaxDiff(got_gradients[i], expected_gradients[i]), 2e-5) << dora << i;
    EXPECT_EQ(got_gradients[0].select(1, 1).abs().max().item<double>(), 0) << "token 1 is not there";

    const Tensor rounded = embedding(tokens, {{0, 0, 4}}, at::kBFloat16);
    EXPECT_EQ(rounded.scalar_type(), at::kBFloat16);
    EXPECT_LT(MaxDiff(rounded.to(at::kFloat), expected), 0.02 * expected.abs().max().item<double>());
  }
}

// As torch.nn.Embedding's padding_idx, which is the pad_token_id of a model in transformers.
TEST(LoraTest, TheRowOfThePaddingTokenIsLookedUpAndGetsNoGradient) {
  const Tensor weight = at::randn({7, 5}).set_requires_grad(true), upstream = at::randn({4, 5});
  const Tensor tokens = at::tensor(std::vector<int64_t>{3, 0, 3, 6}, at::kLong);
  const Tensor a = at::randn({2, 7}).set_requires_grad(true), b = at::randn({5, 2}).set_requires_grad(true);
  const auto gradients = [&](std::optional<int64_t> padding_token) {
    const Embedding embedding(weight, 1, padding_token, {{a, b, 0.7, 0, Tensor()}});
    const Tensor y = embedding(tokens, {{0, 0, 4}}, std::nullopt);
    EXPECT_LT(MaxDiff(y, at::embedding(weight + 0.7 * at::mm(b, a).t(), tokens)), 1e-5);
    (y * upstream).sum().backward();
    std::vector<Tensor> result;
    for (const Tensor& input : {weight, a, b}) {
      result.push_back(input.grad().clone());
      input.mutable_grad() = Tensor();
    }
    return result;
  };
  std::vector<Tensor> expected = gradients(std::nullopt);
  EXPECT_GT(expected[0][3].abs().max().item<double>(), 0);
  expected[0][3].zero_();
  expected[1].select(1, 3).zero_();
  const std::vector<Tensor> padded = gradients(3);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(padded[i], expected[i])) << i;
}

TEST(LoraTest, AMergedModelComputesWhatTheAdaptedOneDoes) {
  at::NoGradGuard no_grad;
  for (const bool tied : {true, false}) {
    const ModelConfig config = TinyConfig(tied);
    const NamedTensors weights = RandomWeights(config, 3);
    std::vector<std::pair<std::string, AdapterConfig>> options(11, {"", AllLinear()});
    options[0].first = "plain";
    options[1] = {"rslora", AllLinear()};
    options[1].second.rslora = true;
    options[2] = {"dora", AllLinear()};
    options[2].second.dora = true;
    options[3].first = "head";
    options[3].second = AdapterConfig{};
    options[3].second.target_modules = {"lm_head", "q_proj"};
    options[4] = {"head with dora", options[3].second};
    options[4].second.dora = true;
    options[5] = {"saved head", AllLinear()};
    options[5].second.modules_to_save = {"lm_head"};
    options[6] = {"saved embedding", AllLinear()};
    options[6].second.modules_to_save = {"embed_tokens"};
    options[7] = {"saved both and a norm", AllLinear()};
    options[7].second.modules_to_save = {"embed_tokens", "lm_head", "post_attention_layernorm"};
    options[8] = {"embedding", AdapterConfig{}};
    options[8].second.target_modules = {"embed_tokens", "v_proj"};
    options[9] = {"embedding with dora", options[8].second};
    options[9].second.dora = true;
    options[10] = {"embedding and head", AdapterConfig{}};
    options[10].second.target_modules = {"embed_tokens", "lm_head"};
    for (const auto& [name, lora] : options) {
      const Adapter adapter = MakeFilled(lora, config, weights);
      const Tensor adapted = Logits(**MakeTunedModel(config, weights, {&adapter}), Batch());
      const auto merged = MergeAdapter(config, weights, adapter);
      ASSERT_TRUE(merged.ok()) << merged.status();
      EXPECT_LT(MaxDiff(Logits(**MakeMergedModel(config, *merged), Batch()), adapted), 1e-4) << name;
      EXPECT_GT(MaxDiff(Logits(**MakeModel(config, weights, {}), Batch()), adapted), 1e-2) << name << " does nothing";
      const bool moves_one_of_two =
          name.starts_with("head") || name.starts_with("saved") || name.starts_with("embedding");
      EXPECT_EQ(merged->untied, tied && moves_one_of_two) << name;
    }
  }
}

TEST(LoraTest, AMergedMixtureComputesWhatTheAdaptedOneDoes) {
  at::NoGradGuard no_grad;
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  const std::vector<std::vector<std::string>> targets = {
      {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
      {"mlp.experts.gate_up_proj"},
      {"layers.2.mlp.experts.down_proj", "mlp.experts.gate_up_proj"},
      {"mlp.gate.weight", "mlp.gate_proj.weight"},
  };
  for (const std::vector<std::string>& names : targets) {
    AdapterConfig lora;
    lora.target_modules = {"v_proj"};
    lora.target_parameters = names;
    lora.rank_pattern = {{names[0], 3}};
    lora.alpha_pattern = {{names[0], 20}};
    const Adapter adapter = MakeFilled(lora, config, weights);
    const Tensor adapted = Logits(**MakeTunedModel(config, weights, {&adapter}), Batch());
    const auto merged = MergeAdapter(config, weights, adapter);
    ASSERT_TRUE(merged.ok()) << merged.status();
    EXPECT_LT(MaxDiff(Logits(**MakeMergedModel(config, *merged), Batch()), adapted), 1e-4) << names[0];
    lora.target_parameters.clear();
    lora.rank_pattern.clear();
    lora.alpha_pattern.clear();
    Adapter without{lora, {}};
    for (const auto& [name, tensor] : adapter.tensors) {
      if (absl::StrContains(name, ".v_proj.")) without.tensors[name] = tensor;
    }
    EXPECT_GT(MaxDiff(Logits(**MakeTunedModel(config, weights, {&without}), Batch()), adapted), 1e-3)
        << names[0] << " does nothing";
  }
}

// Expert by expert, by what PEFT's get_delta_weight says: A lies by expert, B by rank.
TEST(LoraTest, EveryExpertHasItsOwnPartOfTheAdapter) {
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  const Adapter adapter = MakeFilled(OnExperts(), config, weights);
  const auto merged = MergeAdapter(config, weights, adapter);
  ASSERT_TRUE(merged.ok()) << merged.status();
  const std::string prefix = "base_model.model.model.layers.2.mlp.experts.";
  const Tensor a = adapter.tensors.at(prefix + "base_layer.lora_A.weight").view({4, 8, 16}),
               b = adapter.tensors.at(prefix + "base_layer.lora_B.weight").view({12, 8, 4});
  for (int64_t expert = 0; expert < 4; ++expert) {
    const std::string name = absl::StrCat("model.layers.2.mlp.experts.", expert, ".");
    const Tensor change = at::mm(b.select(2, expert), a[expert]);
    for (const auto& [part, first] : {std::pair("gate_proj.weight", 0), std::pair("up_proj.weight", 6)}) {
      const Tensor moved = merged->weights.at(name + part) - weights.at(name + part);
      EXPECT_LT(MaxDiff(moved, change.slice(0, first, first + 6)), 1e-5) << name << part;
    }
  }
}

// AdamW moves what has a gradient of zero, too, so that an expert without tokens is treated as by transformers.
TEST(LoraTest, AnExpertWithoutTokensHasAGradientOfZero) {
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora = OnExperts();
  lora.rank = 1;  // where a column of B could be taken for a row
  const Adapter adapter = MakeFilled(lora, config, weights);
  for (const auto& [name, tensor] : adapter.tensors) tensor.set_requires_grad(true);
  const Example alike{{7, 7}, {0, 1}};  // both tokens take the same two experts of four
  SumLoss(**MakeTunedModel(config, weights, {&adapter}), MakePackedBatch({&alike}, at::kCPU)).backward();
  int64_t idle = 0;
  for (const auto& [name, tensor] : adapter.tensors) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_TRUE(tensor.grad().is_contiguous()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
    if (absl::StrContains(name, "lora_A")) idle += (tensor.grad().abs().sum(1) == 0).sum().item<int64_t>();
  }
  EXPECT_EQ(idle, 2 * 2 * 2);  // experts, parameters, layers
}

TEST(LoraTest, AnAdapterOnExpertsHasPeftsNamesAndShapes) {
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  const auto shapes_of = [&](const std::vector<std::string>& targets) {
    AdapterConfig lora;
    lora.rank = 3;
    lora.target_parameters = targets;
    const Adapter adapter = MakeFilled(lora, config, weights);
    const TempFolder folder;
    EXPECT_TRUE(WriteAdapter(adapter, folder.path()).ok());
    const auto again = ReadAdapter(folder.path(), config);
    EXPECT_TRUE(again.ok()) << again.status();
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const auto& [name, tensor] : again->tensors) {
      EXPECT_TRUE(at::equal(tensor, adapter.tensors.at(name))) << name;
      shapes[name] = tensor.sizes().vec();
    }
    return shapes;
  };
  const std::string mlp = "base_model.model.model.layers.2.mlp.";
  const std::map<std::string, std::vector<int64_t>> both = {
      {mlp + "experts.base_layer.lora_A.weight", {12, 16}},
      {mlp + "experts.base_layer.lora_B.weight", {12, 12}},
      {mlp + "experts.lora_A.weight", {12, 6}},
      {mlp + "experts.lora_B.weight", {16, 12}},
  };
  EXPECT_EQ(shapes_of({"layers.2.mlp.experts.gate_up_proj", "layers.2.mlp.experts.down_proj"}), both);
  const std::map<std::string, std::vector<int64_t>> one = {
      {mlp + "experts.lora_A.weight", {12, 16}},
      {mlp + "experts.lora_B.weight", {12, 12}},
      {mlp + "gate.lora_A.weight", {3, 16}},
      {mlp + "gate.lora_B.weight", {4, 3}},
  };
  EXPECT_EQ(shapes_of({"layers.2.mlp.experts.gate_up_proj", "layers.2.mlp.gate.weight"}), one);
}

// As PEFT writes it with transformers 4: each expert has linear layers of its own.
Adapter OnEachExpert(const ModelConfig& config, bool rslora = false) {
  Adapter adapter;
  adapter.config.rank = 2;
  adapter.config.alpha = 3;
  adapter.config.rslora = rslora;
  adapter.config.dropout = 0.1;
  adapter.config.target_modules = {"q_proj", "gate", "gate_proj", "up_proj", "down_proj"};
  at::manual_seed(7);
  for (const auto& [name, shape] : CheckpointTensors(config)) {
    const std::string module = "base_model.model." + name.substr(0, name.rfind('.'));
    for (const std::string& target : adapter.config.target_modules) {
      if (!module.ends_with("." + target)) continue;
      adapter.tensors[module + ".lora_A.weight"] = at::randn({2, shape[1]});
      adapter.tensors[module + ".lora_B.weight"] = at::randn({shape[0], 2});
    }
  }
  return adapter;
}

TEST(LoraTest, AdaptersOfSingleExpertsAreReadAsOneOfAll) {
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  for (const bool rslora : {false, true}) {
    const Adapter single = OnEachExpert(config, rslora);
    const TempFolder folder;
    ASSERT_TRUE(WriteAdapter(single, folder.path()).ok());
    const auto read = ReadAdapter(folder.path(), config);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(MakeTunedModel(config, weights, {&*read}).ok());
    const auto merged = MergeAdapter(config, weights, *read);
    ASSERT_TRUE(merged.ok()) << merged.status();
    const double scale = rslora ? 3 / std::sqrt(2.0) : 1.5;
    int adapted = 0;
    for (const auto& [name, weight] : merged->weights) {
      const std::string module = "base_model.model." + name.substr(0, name.rfind('.'));
      const auto a = single.tensors.find(module + ".lora_A.weight");
      if (a == single.tensors.end()) continue;
      const Tensor change = scale * at::mm(single.tensors.at(module + ".lora_B.weight"), a->second);
      EXPECT_LT(MaxDiff(weight - weights.at(name), change), 1e-4) << name;
      ++adapted;
    }
    EXPECT_EQ(adapted, 3 + 2 * (1 + 3 * 4) + 3) << "of three layers q_proj, of two router and experts, of one the MLP";
  }
}

TEST(LoraTest, AdaptersOfSingleExpertsThatHaveNoFormTogetherAreRefused) {
  const ModelConfig config = Mixture();
  const auto refusal = [&](const Adapter& adapter) {
    const TempFolder folder;
    EXPECT_TRUE(WriteAdapter(adapter, folder.path()).ok());
    return std::string(ReadAdapter(folder.path(), config).status().message());
  };
  Adapter incomplete = OnEachExpert(config);
  const std::string absent = "base_model.model.model.layers.2.mlp.experts.3.up_proj.lora_B.weight";
  incomplete.tensors.erase(absent);
  EXPECT_THAT(refusal(incomplete), HasSubstr("missing: " + absent));
  incomplete.tensors[absent] = at::zeros({6, 3});
  EXPECT_THAT(refusal(incomplete), HasSubstr("wrong shape: " + absent + " is [6, 3], must be [6, 2]"));
  Adapter adapter = OnEachExpert(config);
  adapter.config.rank_pattern = {{"experts.1.up_proj", 4}};
  EXPECT_THAT(refusal(adapter), HasSubstr("rank_pattern: matches model.layers.0.mlp.experts.1.up_proj"));
  adapter.config.rank_pattern.clear();
  adapter.config.alpha_pattern = {{"layers.1.mlp.up_proj", 9}};
  EXPECT_THAT(refusal(adapter), HasSubstr("alpha_pattern: matches model.layers.1.mlp.up_proj"));
  adapter.config.alpha_pattern.clear();
  adapter.config.dora = true;
  EXPECT_THAT(refusal(adapter), HasSubstr("use_dora: true"));
}

TEST(LoraTest, AnAdapterOnExpertsSharesTheBaseWithNoOther) {
  const ModelConfig config = Mixture();
  const NamedTensors weights = RandomWeights(config, 3);
  const Adapter experts = *MakeAdapter(OnExperts(), config, weights, 1),
                attention = *MakeAdapter(AllLinear(), config, weights, 1);
  EXPECT_THAT(std::string(MakeTunedModel(config, weights, {&attention, &experts}).status().message()),
              HasSubstr("an adapter on experts cannot share the base"));
}

// Bug 23: to numbers that were rounded or quantised on the way, an adapter was not trained.
TEST(LoraTest, MergingAddsToTheVeryNumbersOfTheBase) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  const Adapter fresh = *MakeAdapter(AllLinear(), config, weights, 4);  // adds zeros
  const auto merged = MergeAdapter(config, weights, fresh);
  ASSERT_TRUE(merged.ok()) << merged.status();
  for (const auto& [name, tensor] : weights) EXPECT_TRUE(at::equal(merged->weights.at(name), tensor)) << name;
}

// Bug 9: an adapter on a tied head must not move the embedding, and must survive the merge.
TEST(LoraTest, AnAdapterOnATiedHeadLeavesTheEmbeddingAlone) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"lm_head"};
  const Adapter adapter = MakeFilled(lora, config, weights);
  const auto merged = *MergeAdapter(config, weights, adapter);
  EXPECT_TRUE(at::equal(merged.weights.at("model.embed_tokens.weight"), weights.at("model.embed_tokens.weight")));
  EXPECT_GT(MaxDiff(merged.weights.at("lm_head.weight"), weights.at("model.embed_tokens.weight")), 0.01);
}

TEST(LoraTest, AnAdapterOnATiedEmbeddingLeavesTheHeadAlone) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"embed_tokens"};
  const Adapter adapter = MakeFilled(lora, config, weights);
  const auto merged = *MergeAdapter(config, weights, adapter);
  EXPECT_TRUE(merged.untied);
  ASSERT_TRUE(merged.weights.contains("lm_head.weight"));
  EXPECT_TRUE(at::equal(merged.weights.at("lm_head.weight"), weights.at("model.embed_tokens.weight")));
  EXPECT_GT(MaxDiff(merged.weights.at("model.embed_tokens.weight"), weights.at("model.embed_tokens.weight")), 0.01);
}

TEST(LoraTest, TheLossOfAnAdaptedHeadIsThatOfItsLogits) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"lm_head", "v_proj"};
  const Adapter adapter = MakeFilled(lora, config, weights);
  for (const auto& [name, tensor] : adapter.tensors) tensor.set_requires_grad(true);
  const auto model = *MakeTunedModel(config, weights, {&adapter});
  const PackedBatch batch = Batch();
  const auto gradients = [&](const Tensor& loss) {
    loss.backward();
    std::vector<Tensor> result;
    for (const auto& [name, tensor] : adapter.tensors) {
      result.push_back(tensor.grad().clone());
      tensor.mutable_grad() = Tensor();
    }
    return result;
  };
  const Tensor loss = SumLoss(*model, batch);
  const Tensor expected = at::cross_entropy_loss(Logits(*model, batch).index_select(0, batch.predicting_rows),
                                                 batch.labels, {}, at::Reduction::Sum);
  EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-4);
  const auto got = gradients(loss), wanted = gradients(expected);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_LT(MaxDiff(got[i], wanted[i]), 1e-4) << i;
}

TEST(LoraTest, WhatIsWrittenReadsBack) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora = AllLinear();
  lora.dora = true;
  lora.modules_to_save = {"lm_head"};
  lora.rank_pattern = {{"q_proj", 2}};
  lora.layers_to_transform = {1};
  const Adapter adapter = MakeFilled(lora, config, weights);
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  const auto again = ReadAdapter(folder.path(), config);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->tensors.size(), adapter.tensors.size());
  for (const auto& [name, tensor] : adapter.tensors) EXPECT_TRUE(at::equal(again->tensors.at(name), tensor)) << name;
  EXPECT_TRUE(again->tensors.contains("base_model.model.lm_head.weight"));
  EXPECT_TRUE(again->tensors.contains("base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector"));
  EXPECT_FALSE(again->tensors.contains("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"));
}

TEST(LoraTest, AnEmbeddingsAdapterHasPeftsNamesAndShapes) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_regex = R"(model\.embed_tokens)";
  lora.rank_pattern = {{"embed_tokens", 3}};
  lora.dora = true;
  const Adapter adapter = MakeFilled(lora, config, weights);
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  const auto again = ReadAdapter(folder.path(), config);
  ASSERT_TRUE(again.ok()) << again.status();
  const std::string prefix = "base_model.model.model.embed_tokens.";
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& [name, tensor] : again->tensors) {
    EXPECT_TRUE(at::equal(tensor, adapter.tensors.at(name))) << name;
    shapes[name] = tensor.sizes().vec();
  }
  const std::map<std::string, std::vector<int64_t>> expected = {{prefix + "lora_embedding_A", {3, 31}},
                                                                {prefix + "lora_embedding_B", {16, 3}},
                                                                {prefix + "lora_magnitude_vector", {16}}};
  EXPECT_EQ(shapes, expected);
}

TEST(LoraTest, AModuleThatIsSavedWholeIsTrainedWhole) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"q_proj"};
  lora.modules_to_save = {"lm_head", "embed_tokens", "layers.1.mlp"};
  const Adapter adapter = MakeFilled(lora, config, weights);
  for (const auto& [name, tensor] : adapter.tensors) tensor.set_requires_grad(true);
  SumLoss(**MakeTunedModel(config, weights, {&adapter}), Batch()).backward();
  EXPECT_TRUE(adapter.tensors.contains("base_model.model.lm_head.weight"));
  EXPECT_TRUE(adapter.tensors.contains("base_model.model.model.embed_tokens.weight"));
  EXPECT_TRUE(adapter.tensors.contains("base_model.model.model.layers.1.mlp.up_proj.weight"));
  EXPECT_FALSE(adapter.tensors.contains("base_model.model.model.layers.0.mlp.up_proj.weight"));
  for (const auto& [name, tensor] : adapter.tensors) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
  }
}

TEST(LoraTest, AnAdapterThatReplacesModulesSharesTheBaseWithNoOther) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig saving = AllLinear();
  saving.modules_to_save = {"lm_head"};
  const Adapter first = *MakeAdapter(AllLinear(), config, weights, 1),
                second = *MakeAdapter(saving, config, weights, 1);
  EXPECT_THAT(std::string(MakeTunedModel(config, weights, {&first, &second}).status().message()),
              HasSubstr("modules_to_save"));
}

TEST(LoraTest, NamesThatMatchNothingAreRefused) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"q_proj", "q_prj"};
  const auto target = MakeAdapter(lora, config, weights, 1);
  EXPECT_EQ(target.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(target.status().message()), HasSubstr("q_prj"));
  lora.target_modules = {"q_proj"};
  lora.modules_to_save = {"embed_token"};
  EXPECT_THAT(std::string(MakeAdapter(lora, config, weights, 1).status().message()), HasSubstr("embed_token"));
  lora.modules_to_save = {"lp"};
  EXPECT_THAT(std::string(MakeAdapter(lora, config, weights, 1).status().message()), HasSubstr("is also the end of"));
}

// Bug 25: an adapter whose tensors do not fit is refused with all of them, never served as the plain base.
TEST(LoraTest, EveryTensorThatDoesNotFitIsReported) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  Adapter adapter = *MakeAdapter(AllLinear(), config, weights, 1);
  const std::string renamed = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  adapter.tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = adapter.tensors.at(renamed);
  adapter.tensors.erase(renamed);
  adapter.tensors.at("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight") = at::zeros({16, 3});
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  const auto read = ReadAdapter(folder.path(), config);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("missing: " + renamed));
  EXPECT_THAT(std::string(read.status().message()),
              HasSubstr("unexpected: model.layers.0.self_attn.q_proj.lora_A.weight"));
  EXPECT_THAT(std::string(read.status().message()),
              HasSubstr("wrong shape: base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight is [16, 3]"));
}

TEST(LoraTest, AnAdapterThatIsNotFiniteOrNoSafetensorsIsRefused) {
  const ModelConfig config = TinyConfig();
  Adapter adapter = *MakeAdapter(AllLinear(), config, RandomWeights(config, 3), 1);
  const std::string name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
  adapter.tensors.at(name)[0][0] = NAN;
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
  EXPECT_THAT(std::string(ReadAdapter(folder.path(), config).status().message()),
              HasSubstr(name + " holds NaN or infinite numbers"));
  const std::string weights = folder.path() + "/adapter_model.safetensors";
  std::filesystem::rename(weights, folder.path() + "/adapter_model.bin");
  EXPECT_THAT(std::string(ReadAdapter(folder.path(), config).status().message()),
              HasSubstr("adapter_model.bin is a pickle"));
}

// PEFT saves it without being asked when head or embedding are targeted.
TEST(LoraTest, TheBasesMatrixBesideItsAdapterIsLeftOutIfItIsThatOfTheBase) {
  for (const std::string module : {"lm_head", "model.embed_tokens"}) {
    for (const bool tied : {false, true}) {
      const ModelConfig config = TinyConfig(tied);
      const NamedTensors weights = RandomWeights(config, 3);
      AdapterConfig lora;
      lora.target_modules = {module};
      Adapter adapter = MakeFilled(lora, config, weights);
      const std::string of_base = absl::StrCat("base_model.model.", module, ".base_layer.weight");
      adapter.tensors[of_base] = weights.at(tied ? "model.embed_tokens.weight" : module + ".weight");
      const TempFolder folder;
      ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
      const auto read = ReadAdapter(folder.path(), config, &weights);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(read->tensors.size(), 2u);
      const NamedTensors others = RandomWeights(config, 4);
      EXPECT_THAT(std::string(ReadAdapter(folder.path(), config, &others).status().message()),
                  HasSubstr("unexpected: " + of_base));
    }
  }
}

// save_embedding_layers of PEFT; what is loaded in place of the base's would change what the base computes.
TEST(LoraTest, AnAdapterMayBeSavedWithTheEmbeddingsOfItsBase) {
  for (const bool tied : {false, true}) {
    const ModelConfig config = TinyConfig(tied);
    const NamedTensors weights = RandomWeights(config, 3);
    Adapter adapter = MakeFilled(AllLinear(), config, weights);
    const size_t its_own = adapter.tensors.size();
    const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
    adapter.tensors["base_model.model." + embedding] = weights.at(embedding);
    adapter.tensors["base_model.model." + head] = weights.at(tied ? embedding : head);
    const TempFolder folder;
    ASSERT_TRUE(WriteAdapter(adapter, folder.path()).ok());
    const auto read = ReadAdapter(folder.path(), config, &weights);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->tensors.size(), its_own);
    const NamedTensors others = RandomWeights(config, 4);
    EXPECT_THAT(std::string(ReadAdapter(folder.path(), config, &others).status().message()),
                HasSubstr("base_model.model.lm_head.weight, which is not the base's"));
  }
}

TEST(LoraTest, NamesMayHoldThatOfTheAdapterAsInMemory) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.target_modules = {"q_proj", "embed_tokens"};
  lora.dora = true;
  const Adapter adapter = MakeFilled(lora, config, weights);
  Adapter in_memory{lora, {}};
  for (const auto& [name, tensor] : adapter.tensors) {
    std::string its = name;
    if (absl::EndsWith(name, ".weight")) its.resize(name.rfind('.'));
    in_memory.tensors[its + (absl::StrContains(name, "_embedding_") ? ".default" : ".default.weight")] = tensor;
  }
  const TempFolder folder;
  ASSERT_TRUE(WriteAdapter(in_memory, folder.path()).ok());
  const auto read = ReadAdapter(folder.path(), config);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->tensors.size(), adapter.tensors.size());
  for (const auto& [name, tensor] : adapter.tensors) EXPECT_TRUE(at::equal(read->tensors.at(name), tensor)) << name;
}

TEST(LoraTest, AMergeThatIsNotFiniteIsRefused) {
  const ModelConfig config = TinyConfig();
  const NamedTensors weights = RandomWeights(config, 3);
  Adapter adapter = *MakeAdapter(AllLinear(), config, weights, 1);
  adapter.tensors.begin()->second.fill_(NAN);
  EXPECT_EQ(MergeAdapter(config, weights, adapter).status().code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace luthier
