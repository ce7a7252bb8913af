// Every operation with an explicit backward against its plain form under recorded autograd, in random shapes.
#include "worker/trainer/ops/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/batch.h"

namespace luthier {
namespace {

constexpr double kTolerance = 2e-5;

Tensor Random(std::vector<int64_t> shape) { return at::randn(shape).set_requires_grad(true); }

// Compares outputs and the gradients of every input under the same random upstream gradient.
void ExpectEqual(const std::vector<Tensor>& inputs, const std::function<Tensor()>& fused, const std::function<Tensor()>& plain) {
  const Tensor got = fused(), expected = plain();
  ASSERT_EQ(got.sizes(), expected.sizes());
  EXPECT_LT((got - expected).abs().max().item<double>(), kTolerance);
  const Tensor upstream = at::randn_like(expected);
  (got * upstream).sum().backward();
  std::vector<Tensor> gradients;
  for (const Tensor& input : inputs) {
    gradients.push_back(input.grad().clone());
    input.mutable_grad() = Tensor();
  }
  (expected * upstream).sum().backward();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const double scale = std::max(1.0, inputs[i].grad().abs().max().item<double>());
    EXPECT_LT((gradients[i] - inputs[i].grad()).abs().max().item<double>() / scale, kTolerance) << "input " << i;
  }
}

TEST(OpsTest, RmsNormEqualsItsFormula) {
  const Tensor x = Random({7, 12}), weight = Random({12});
  ExpectEqual({x, weight}, [&] { return ops::RmsNorm(x, weight, 1e-5); },
              [&] { return x * (x.square().mean(-1, true) + 1e-5).rsqrt() * weight; });
}

TEST(OpsTest, RotaryEqualsComplexRotation) {
  const Tensor x = Random({5, 3, 8});
  const Tensor angles = at::randn({5, 4});
  const ops::RotaryTable table{angles.cos(), angles.sin()};
  ExpectEqual({x}, [&] { return ops::Rotary(x, table); },
              [&] {
                const Tensor a = x.slice(-1, 0, 4), b = x.slice(-1, 4), cos = angles.cos().unsqueeze(1), sin = angles.sin().unsqueeze(1);
                return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
              });
}

TEST(OpsTest, SwiGluEqualsItsFormula) {
  const Tensor gate = Random({6, 10}), up = Random({6, 10});
  ExpectEqual({gate, up}, [&] { return ops::SwiGlu(gate, up); }, [&] { return gate * at::sigmoid(gate) * up; });
}

TEST(OpsTest, LoraLinearEqualsItsFormula) {
  const Tensor x = Random({9, 6}), weight = at::randn({5, 6}), a = Random({3, 6}), b = Random({5, 3});
  ExpectEqual({x, a, b}, [&] { return ops::LoraLinear(x, weight, a, b, 0.7, 0); },
              [&] { return at::linear(x, weight + 0.7 * at::mm(b, a)); });
}

TEST(OpsTest, LoraDropoutUsesOneMaskForForwardAndBackward) {
  const Tensor x = at::ones({200, 4}).set_requires_grad(true), weight = at::zeros({4, 4});
  const Tensor eye = at::eye(4).set_requires_grad(true), b = at::eye(4).set_requires_grad(true);
  const Tensor y = ops::LoraLinear(x, weight, eye, b, 1.0, 0.25);
  y.sum().backward();
  EXPECT_TRUE(at::equal(y.detach(), x.grad()));  // y = x·mask with x = 1, so dy/dx is the mask itself
  EXPECT_NEAR(y.mean().item<double>(), 1.0, 0.1);
  EXPECT_TRUE(((y == 0) | (y - 1 / 0.75).abs().lt(1e-6)).all().item<bool>());
}

TEST(OpsTest, PackedAttentionEqualsEachDocumentAlone) {
  const ops::Documents documents = {{0, 7}, {7, 8}, {8, 20}, {20, 26}};
  const Tensor q = Random({26, 4, 8}), k = Random({26, 2, 8}), v = Random({26, 2, 8});
  ExpectEqual({q, k, v}, [&] { return ops::PackedAttention(q, k, v, documents); },
              [&] {
                std::vector<Tensor> parts;
                for (const auto& [begin, end] : documents) {
                  const auto heads = [&, b = begin, e = end](const Tensor& x) { return x.slice(0, b, e).transpose(0, 1); };
                  const Tensor scores = at::matmul(heads(q), heads(k).repeat_interleave(2, 0).transpose(1, 2)) / std::sqrt(8.0);
                  const Tensor future = at::ones({end - begin, end - begin}, at::kBool).triu(1);
                  const Tensor mixed = at::matmul(scores.masked_fill(future, -INFINITY).softmax(-1), heads(v).repeat_interleave(2, 0));
                  parts.push_back(mixed.transpose(0, 1));
                }
                return at::cat(parts);
              });
}

TEST(OpsTest, ChunkedCrossEntropyEqualsTheWholeLogits) {
  const Tensor h = Random({1100, 6}), head = Random({13, 6});  // more than two chunks
  const Tensor labels = at::randint(0, 13, {1100}, at::kLong);
  ExpectEqual({h, head}, [&] { return ops::SumCrossEntropy(h, head, labels) / 100; },
              [&] { return at::cross_entropy_loss(at::linear(h, head), labels, {}, at::Reduction::Sum) / 100; });
}

TEST(OpsTest, CrossEntropyOfNoTrainedTokenIsZeroAndHasAGradient) {
  const Tensor h = Random({0, 6}), head = Random({13, 6});
  const Tensor loss = ops::SumCrossEntropy(h, head, at::empty({0}, at::kLong));
  EXPECT_EQ(loss.item<double>(), 0);
  loss.backward();
  EXPECT_EQ(head.grad().abs().max().item<double>(), 0);
}

ModelConfig TinyConfig() {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 31;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 4;
  config.tie_word_embeddings = true;
  return config;
}

// Two jobs on one base: what each adapter computes must not depend on the other's tokens in the same pass.
TEST(LoraTest, EachSliceGoesThroughItsOwnAdapter) {
  at::NoGradGuard no_grad;
  const ModelConfig config = TinyConfig();
  const auto linears = LlamaLinearLayers(config);
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.all_linear = true;
  Adapter first = *MakeAdapter(lora, linears, 4);
  lora.rank = 3;
  Adapter second = *MakeAdapter(lora, linears, 5);
  for (Adapter* adapter : {&first, &second}) {
    for (auto& [name, tensor] : adapter->tensors) tensor.normal_(0, 0.3);
  }
  const auto both = *MakeModel(config, weights, CollectLayers({&first, &second}, linears));
  const auto only_second = *MakeModel(config, weights, CollectLayers({&second}, linears));
  const Example a{{1, 2, 3, 4, 5}, {0, 1, 1, 1, 1}}, b{{6, 7, 8}, {0, 1, 1}};
  const PackedBatch together = MakePackedBatch({&a, &b}, at::kCPU), alone = MakePackedBatch({&b}, at::kCPU);
  DocumentAttention attention_together(together.documents), attention_alone(alone.documents);
  const Tensor h = both->Forward(together.tokens_T, together.positions_T, attention_together, {{0, 0, 5}, {1, 5, 8}});
  const Tensor expected = only_second->Forward(alone.tokens_T, alone.positions_T, attention_alone, {{0, 0, 3}});
  EXPECT_LT((h.slice(0, 5) - expected).abs().max().item<double>(), 1e-5);
}

TEST(LoraTest, AFreshAdapterLeavesTheModelAsItIs) {
  at::NoGradGuard no_grad;
  const ModelConfig config = TinyConfig();
  const auto linears = LlamaLinearLayers(config);
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.all_linear = true;
  const Adapter adapter = *MakeAdapter(lora, linears, 4);
  const Example document{{1, 2, 3, 4, 5}, {0, 1, 1, 1, 1}};
  const PackedBatch batch = MakePackedBatch({&document}, at::kCPU);
  const auto plain = *MakeModel(config, weights, {});
  const auto adapted = *MakeModel(config, weights, CollectLayers({&adapter}, linears));
  EXPECT_TRUE(at::equal(Logits(*plain, batch), Logits(*adapted, batch)));
}

// Found by the export's own check: with dropout left on, a reloaded adapter computed other logits than the trained one.
TEST(LoraTest, DropoutActsInTrainingOnly) {
  const ModelConfig config = TinyConfig();
  const auto linears = LlamaLinearLayers(config);
  const NamedTensors weights = RandomWeights(config, 3);
  AdapterConfig lora;
  lora.all_linear = true;
  lora.dropout = 0.5;
  Adapter adapter = *MakeAdapter(lora, linears, 4);
  for (auto& [name, tensor] : adapter.tensors) tensor.normal_(0, 0.3);
  const Example document{{1, 2, 3, 4, 5}, {0, 1, 1, 1, 1}};
  const PackedBatch batch = MakePackedBatch({&document}, at::kCPU);
  const auto model = *MakeModel(config, weights, CollectLayers({&adapter}, linears));
  EXPECT_FALSE(at::equal(Logits(*model, batch), Logits(*model, batch)));
  at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(Logits(*model, batch), Logits(*model, batch)));
}

TEST(LoraTest, ATargetThatMatchesNothingIsRefused) {
  AdapterConfig lora;
  lora.target_modules = {"q_prj"};
  const auto adapter = MakeAdapter(lora, LlamaLinearLayers(TinyConfig()), 1);
  EXPECT_EQ(adapter.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(adapter.status().message().find("q_prj"), absl::string_view::npos);
}

}  // namespace
}  // namespace luthier
