// How a model computes (layers computed again, bf16) changes what it computes by nothing, or by rounding.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/support/model_fixture.h"

namespace luthier {
namespace {

PackedBatch Batch() { return BatchOf({{1, 5, 30, 12, 9, 33, 2, 8}, {3, 14, 15, 9, 26}}); }
PackedBatch OtherBatch() { return BatchOf({{6, 28, 27, 5, 16, 6, 36, 28}, {4, 37, 8, 15, 38}}); }

struct Gradients {
  double loss;
  NamedTensors of;
};

// Of everything: the base's weights and an adapter with dropout.
Gradients Compute(const std::string& family, const ComputeOptions& options, double dropout,
                  const PackedBatch& batch = Batch()) {
  ModelFixture fixture(family);
  for (auto& [name, tensor] : fixture.base) tensor = tensor.clone();
  fixture.adapter.config.dropout = dropout;
  NamedTensors all = fixture.base;
  all.insert(fixture.adapter.tensors.begin(), fixture.adapter.tensors.end());
  for (auto& [name, tensor] : all) tensor.set_requires_grad(true);
  const auto model = *MakeTunedModel(fixture.config, fixture.base, {&fixture.adapter});
  model->Configure(options);
  at::manual_seed(5);
  const Tensor loss = SumLoss(*model, batch);
  loss.backward();
  Gradients result{loss.item<double>(), {}};
  for (const auto& [name, tensor] : all) {
    if (tensor.grad().defined()) result.of[name] = tensor.grad();
  }
  return result;
}

double RelativeDifference(const Tensor& a, const Tensor& b) {
  return (a.to(at::kFloat) - b.to(at::kFloat)).norm().item<double>() / std::max(1e-6, b.norm().item<double>());
}

// Bugs 10 and 13: the same dropout mask again, and gradients also where the embedding is frozen.
TEST(ComputeTest, LayersThatAreComputedAgainGiveTheSameGradientsInEveryFamily) {
  for (const std::string& family : FixtureFamilies()) {
    const Gradients kept = Compute(family, {}, 0.3), again = Compute(family, {std::nullopt, true}, 0.3);
    EXPECT_EQ(again.loss, kept.loss) << family;
    ASSERT_EQ(again.of.size(), kept.of.size()) << family;
    for (const auto& [name, gradient] : kept.of)
      EXPECT_LT(RelativeDifference(again.of.at(name), gradient), 1e-6) << family << ", " << name;
  }
}

TEST(ComputeTest, AnAdapterLearnsThroughRecomputedLayersOverAFrozenBase) {
  const ModelFixture fixture("llama");
  for (const auto& [name, tensor] : fixture.adapter.tensors) tensor.set_requires_grad(true);
  fixture.tuned->Configure({std::nullopt, true});
  SumLoss(*fixture.tuned, Batch()).backward();
  for (const auto& [name, tensor] : fixture.adapter.tensors) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
  }
}

// The one lies in front of the layers, so its gradient comes through all of them; the others are cut into experts' in
// every pass.
TEST(ComputeTest, AdaptersOfEmbeddingAndExpertsLearnThroughRecomputedLayers) {
  const auto gradients = [](const std::string& name, bool recompute) {
    const ModelFixture fixture(name, "tests/fixtures/adapters/");
    for (const auto& [name, tensor] : fixture.adapter.tensors) tensor.set_requires_grad(true);
    fixture.tuned->Configure({std::nullopt, recompute});
    SumLoss(*fixture.tuned, Batch()).backward();
    NamedTensors result;
    for (const auto& [name, tensor] : fixture.adapter.tensors) result[name] = tensor.grad();
    return result;
  };
  for (const std::string fixture : {"gemma3_embedding", "qwen3_moe_experts"}) {
    const NamedTensors kept = gradients(fixture, false), again = gradients(fixture, true);
    for (const auto& [name, gradient] : kept) {
      ASSERT_TRUE(gradient.defined() && again.at(name).defined()) << name;
      EXPECT_GT(gradient.abs().max().item<double>(), 0) << name;
      EXPECT_LT(RelativeDifference(again.at(name), gradient), 1e-6) << name;
    }
  }
}

// bf16 has 8 bits: a layer rounds by 0.4 %. Experts are left out, since rounding may choose others. Not with Batch():
// there the gradients of Gemma 2's first q_proj and k_proj are small differences of large numbers, and transformers +
// PEFT with a bf16 base under autocast are 0.50 and 0.37 away from fp32 (here 0.39 and 0.31).
TEST(ComputeTest, Bf16ComputesTheSameUpToRounding) {
  for (const std::string& family : FixtureFamilies()) {
    if (family == "qwen3_moe") continue;
    const Gradients exact = Compute(family, {}, 0, OtherBatch()),
                    rounded = Compute(family, {at::kBFloat16, false}, 0, OtherBatch());
    EXPECT_NEAR(rounded.loss / exact.loss, 1, 0.02) << family;
    double worst = 0;
    for (const auto& [name, gradient] : exact.of) {
      if (gradient.norm().item<double>() > 1e-3)
        worst = std::max(worst, RelativeDifference(rounded.of.at(name), gradient));
    }
    EXPECT_LT(worst, 0.15) << family;
    std::printf("%s: %.3f\n", family.c_str(), worst);
    EXPECT_GT(worst, 1e-4) << family << " did not compute in bf16";
  }
}

TEST(ComputeTest, Bf16AndRecomputationGoTogether) {
  const Gradients kept = Compute("gemma2", {at::kBFloat16, false}, 0.3),
                  again = Compute("gemma2", {at::kBFloat16, true}, 0.3);
  EXPECT_EQ(again.loss, kept.loss);
  for (const auto& [name, gradient] : kept.of) EXPECT_LT(RelativeDifference(again.of.at(name), gradient), 1e-6) << name;
}

}  // namespace
}  // namespace luthier
