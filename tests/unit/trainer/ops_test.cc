// Every operation with an explicit backward against its plain form under recorded autograd, in random shapes: by its
// kernels, and by the operations that GPUs use.
#include "worker/trainer/ops/ops.h"

#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/tiles.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr double kTolerance = 2e-5;

Tensor Random(std::vector<int64_t> shape) { return at::randn(shape).set_requires_grad(true); }

double RelativeError(const Tensor& rounded, const Tensor& exact) {
  return ((rounded.to(at::kFloat) - exact).norm() / exact.norm()).item<double>();
}

// Compares outputs and the gradients of every input under the same random upstream gradient.
void ExpectEqualOnce(const std::vector<Tensor>& inputs, const std::function<Tensor()>& fused,
                     const std::function<Tensor()>& plain) {
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
    inputs[i].mutable_grad() = Tensor();  // callers compare the same inputs in several forms
  }
}

void ExpectEqual(const std::vector<Tensor>& inputs, const std::function<Tensor()>& fused,
                 const std::function<Tensor()>& plain) {
  ExpectEqualOnce(inputs, fused, plain);
  const ops::WithoutKernels composed;
  ExpectEqualOnce(inputs, fused, plain);
}

TEST(OpsTest, RmsNormEqualsItsFormula) {
  const Tensor x = Random({300, 12}),
               weight = Random({12});  // more rows than one partial sum of the weight's gradient has
  ExpectEqual(
      {x, weight}, [&] { return ops::RmsNorm(x, weight, 1e-5); },
      [&] { return x * (x.square().mean(-1, true) + 1e-5).rsqrt() * weight; });
}

TEST(OpsTest, RotaryEqualsComplexRotation) {
  const Tensor x = Random({5, 3, 8});
  const Tensor angles = at::randn({5, 4});
  const ops::RotaryTable table{angles.cos(), angles.sin()};
  ExpectEqual(
      {x}, [&] { return ops::Rotary(x, table); },
      [&] {
        const Tensor a = x.slice(-1, 0, 4), b = x.slice(-1, 4), cos = angles.cos().unsqueeze(1),
                     sin = angles.sin().unsqueeze(1);
        return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
      });
}

TEST(OpsTest, SwiGluEqualsItsFormula) {
  const Tensor gate = Random({6, 10}), up = Random({6, 10});
  ExpectEqual({gate, up}, [&] { return ops::SwiGlu(gate, up); }, [&] { return gate * at::sigmoid(gate) * up; });
}

TEST(OpsTest, GeGluEqualsItsFormula) {
  const Tensor gate = Random({6, 10}), up = Random({6, 10});
  ExpectEqual(
      {gate, up}, [&] { return ops::GeGlu(gate, up); },
      [&] { return 0.5 * gate * (1 + at::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate.pow(3)))) * up; });
}

TEST(OpsTest, LoraLinearEqualsItsFormula) {
  const Tensor x = Random({9, 6}), weight = at::randn({5, 6}), a = Random({3, 6}), b = Random({5, 3});
  ExpectEqual(
      {x, a, b}, [&] { return ops::LoraLinears(x, {{weight, a, b, 0.7}}, 0)[0]; },
      [&] { return at::linear(x, weight + 0.7 * at::mm(b, a)); });
}

TEST(OpsTest, LayersOfOneInputEqualTheirFormulas) {
  const Tensor x = Random({9, 6}), a1 = Random({3, 6}), b1 = Random({5, 3}), a3 = Random({2, 6}), b3 = Random({4, 2});
  const Tensor weight1 = at::randn({5, 6}), weight2 = at::randn({7, 6}), weight3 = at::randn({4, 6});
  ExpectEqual(
      {x, a1, b1, a3, b3},
      [&] {
        const ops::LoraLayer without = {weight2, Tensor(), Tensor()};
        return at::cat(ops::LoraLinears(x, {{weight1, a1, b1, 0.7}, without, {weight3, a3, b3, 2}}, 0), 1);
      },
      [&] {
        return at::cat({at::linear(x, weight1 + 0.7 * at::mm(b1, a1)), at::linear(x, weight2),
                        at::linear(x, weight3 + 2 * at::mm(b3, a3))},
                       1);
      });
}

// Rounded inputs, weights and sums: 8 bits of each.
TEST(OpsTest, LayersOfOneInputInBf16AreThoseInFp32ButForRounding) {
  const auto rounded = [](std::vector<int64_t> shape) { return at::randn(shape).to(at::kBFloat16); };
  const Tensor x = rounded({70, 40}), weight1 = rounded({50, 40}), weight2 = rounded({33, 40});
  const Tensor a1 = at::randn({16, 40}), b1 = at::randn({50, 16}), a2 = at::randn({8, 40}), b2 = at::randn({33, 8}),
               upstream = at::randn({70, 83});
  const auto compute = [&](at::ScalarType type) {
    std::vector<Tensor> inputs = {x.to(type, /*non_blocking=*/false, /*copy=*/true), a1.clone(), b1.clone(), a2.clone(),
                                  b2.clone()};
    for (Tensor& input : inputs) input.set_requires_grad(true);
    const Tensor y = at::cat(
        ops::LoraLinears(
            inputs[0], {{weight1.to(type), inputs[1], inputs[2], 0.7}, {weight2.to(type), inputs[3], inputs[4], 2}}, 0),
        1);
    y.backward(upstream.to(type));
    std::vector<Tensor> results = {y.detach()};
    for (const Tensor& input : inputs) results.push_back(input.grad());
    return results;
  };
  const std::vector<Tensor> in_bf16 = compute(at::kBFloat16), exact = compute(at::kFloat);
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(in_bf16[i].scalar_type(), i < 2 ? at::kBFloat16 : at::kFloat) << i;
    EXPECT_LT(RelativeError(in_bf16[i], exact[i]), 0.01) << i;
  }
}

// As an expert that no token of a batch goes to.
TEST(OpsTest, LayersInBf16OfNoTokenHaveGradientsOfZero) {
  const Tensor x = at::empty({0, 40}, at::kBFloat16).set_requires_grad(true),
               weight = at::randn({50, 40}).to(at::kBFloat16);
  const Tensor a = Random({4, 40}), b = Random({50, 4});
  const Tensor y = ops::LoraLinears(x, {{weight, a, b, 0.7}}, 0)[0] + ops::Linear(x, weight, Tensor());
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{0, 50}));
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_EQ(a.grad().abs().sum().item<double>() + b.grad().abs().sum().item<double>(), 0);
}

void ExpectOneMask() {
  const Tensor x = at::ones({200, 4}).set_requires_grad(true), weight = at::zeros({4, 4});
  const Tensor eye = at::eye(4).set_requires_grad(true), b = at::eye(4).set_requires_grad(true);
  const Tensor y = ops::LoraLinears(x, {{weight, eye, b, 1.0}}, 0.25)[0];
  y.sum().backward();
  EXPECT_TRUE(at::equal(y.detach(), x.grad()));  // y = x·mask with x = 1, so dy/dx is the mask itself
  EXPECT_NEAR(y.mean().item<double>(), 1.0, 0.1);
  EXPECT_TRUE(((y == 0) | (y - 1 / 0.75).abs().lt(1e-6)).all().item<bool>());
}

TEST(OpsTest, LoraDropoutUsesOneMaskForForwardAndBackward) {
  ExpectOneMask();
  const ops::WithoutKernels composed;
  ExpectOneMask();
}

// softmax(cap(scale · q·kᵀ)) · v of one document, written out: key k is seen by query q if q - window < k <= q.
Tensor PlainAttention(const Tensor& q_LNH, const Tensor& k_LKH, const Tensor& v_LKH, const ops::AttentionForm& form) {
  const int64_t length = q_LNH.size(0), queries_per_key = q_LNH.size(1) / k_LKH.size(1);
  const Tensor q = q_LNH.transpose(0, 1), k = k_LKH.transpose(0, 1).repeat_interleave(queries_per_key, 0),
               v = v_LKH.transpose(0, 1).repeat_interleave(queries_per_key, 0);
  Tensor scores = at::matmul(q, k.transpose(1, 2)) * form.scale;
  if (form.softcap > 0) scores = at::tanh(scores / form.softcap) * form.softcap;
  Tensor visible = at::zeros({length, length}, at::kBool);
  for (int64_t query = 0; query < length; ++query) {
    for (int64_t key = 0; key <= query; ++key) visible[query][key] = form.window == 0 || key > query - form.window;
  }
  return at::matmul(scores.masked_fill(visible.logical_not(), -INFINITY).softmax(-1), v).transpose(0, 1);
}

void ExpectEachDocumentAlone(const ops::AttentionForm& form) {
  // The last one has more queries than are worked on at a time.
  const ops::Documents documents = {{0, 7}, {7, 8}, {8, 20}, {20, 26}, {26, 176}};
  const Tensor q = Random({176, 4, 8}), k = Random({176, 2, 8}), v = Random({176, 2, 8});
  ExpectEqual(
      {q, k, v}, [&] { return ops::PackedAttention(q, k, v, documents, form); },
      [&] {
        std::vector<Tensor> parts;
        for (const auto& [begin, end] : documents) {
          parts.push_back(PlainAttention(q.slice(0, begin, end), k.slice(0, begin, end), v.slice(0, begin, end), form));
        }
        return at::cat(parts);
      });
}

TEST(OpsTest, PackedAttentionEqualsEachDocumentAlone) { ExpectEachDocumentAlone({1 / std::sqrt(8.0)}); }

TEST(OpsTest, PackedAttentionSeesNoFartherThanItsWindow) {
  for (const int64_t window : {1, 5, 6, 7, 100}) ExpectEachDocumentAlone({0.3, window});
}

// The mask is a function of the generator's state, so that a loss can be computed again beside itself.
TEST(OpsTest, AttentionsGradientsUnderDropoutAreThoseOfItsLoss) {
  const ops::Documents documents = {{0, 3}, {3, 73}};
  for (const double softcap : {0.0, 1.5}) {
    const ops::AttentionForm form{0.5, 0, softcap, 0.5};
    const std::vector<Tensor> inputs = {Random({73, 4, 8}), Random({73, 2, 8}), Random({73, 2, 8})};
    const Tensor upstream = at::randn({73, 4, 8});
    const auto loss = [&](const std::vector<Tensor>& of) {
      at::manual_seed(7);
      return (ops::PackedAttention(of[0], of[1], of[2], documents, form).to(at::kDouble) * upstream).sum();
    };
    loss(inputs).backward();
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor along = at::randn_like(inputs[i]);
      const auto beside = [&](double step) {
        std::vector<Tensor> moved = inputs;
        moved[i] = (inputs[i] + step * along).detach().set_requires_grad(true);  // in evaluation nothing is dropped
        return loss(moved).item<double>();
      };
      constexpr double kStep = 2e-3;
      const double slope = (beside(kStep) - beside(-kStep)) / (2 * kStep);
      const double expected = (inputs[i].grad() * along).sum().item<double>();
      EXPECT_NEAR(expected, slope, 0.02 * inputs[i].grad().norm().item<double>()) << "input " << i;
    }
  }
}

// Rounded inputs, weights and gradients: 8 bits of each.
TEST(OpsTest, PackedAttentionInBf16IsThatInFp32ButForRounding) {
  const ops::Documents documents = {{0, 7}, {7, 8}, {8, 176}};
  // Heads of less than a tile, of two and of two and a half.
  for (const auto& [head_size, form] : std::vector<std::pair<int64_t, ops::AttentionForm>>{
           {8, {0.35}}, {8, {0.35, 5}}, {8, {0.35, 0, 1.5}}, {64, {0.125}}, {80, {0.11, 70}}}) {
    const auto leaf = [size = head_size](int64_t heads) { return at::randn({176, heads, size}).to(at::kBFloat16); };
    const Tensor q = leaf(4), k = leaf(2), v = leaf(2), upstream = leaf(4);
    const auto compute = [&](at::ScalarType type) {
      std::vector<Tensor> inputs;
      for (const Tensor& x : {q, k, v})
        inputs.push_back(x.to(type, /*non_blocking=*/false, /*copy=*/true).set_requires_grad(true));
      Tensor out = ops::PackedAttention(inputs[0], inputs[1], inputs[2], documents, form);
      out.backward(upstream.to(type));
      std::vector<Tensor> results = {out.detach()};
      for (const Tensor& x : inputs) results.push_back(x.grad());
      return results;
    };
    const std::vector<Tensor> rounded = compute(at::kBFloat16), exact = compute(at::kFloat);
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_EQ(rounded[i].scalar_type(), at::kBFloat16);
      EXPECT_LT(RelativeError(rounded[i], exact[i]), 0.01) << i;
    }
  }
  if (!ops::HasBf16Products())
    GTEST_SKIP() << "SKIPPED: no units for bf16 (AVX512-BF16 or AMX) here, so products of bf16 were not tested";
}

ops::Matrix<uint16_t> AsMatrix(const Tensor& x, bool transposed) {
  return {static_cast<const uint16_t*>(x.const_data_ptr()), x.size(1), transposed};
}

// Shapes whose ends are inside of a tile, at its end and beyond; numbers between the rows that are not theirs.
TEST(OpsTest, ProductsOfTilesAreSumsInFp32) {
  if (!ops::HasBf16Products())
    GTEST_SKIP() << "SKIPPED: no units for bf16 (AVX512-BF16 or AMX) here, so products of bf16 were not tested";
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{5, 40, 0},
                                                                   {0, 5, 8},
                                                                   {5, 0, 8},
                                                                   {1, 1, 1},
                                                                   {19, 33, 70},
                                                                   {16, 16, 32},
                                                                   {64, 96, 64},
                                                                   {33, 17, 31},
                                                                   {70, 200, 1030},
                                                                   {530, 40, 5000}}) {
    for (const int transposed : {0, 1, 2, 3}) {
      SCOPED_TRACE(absl::StrCat(m, " x ", n, " x ", k, ", transposed ", transposed));
      const bool of_a = transposed & 1, of_b = transposed & 2;
      const auto random = [](int64_t rows, int64_t columns, bool transposed) {
        return at::randn({transposed ? columns : rows, (transposed ? rows : columns) + 3}).to(at::kBFloat16);
      };
      const auto used = [](const Tensor& x, bool transposed) {
        const Tensor part = x.to(at::kDouble).slice(1, 0, x.size(1) - 3);
        return transposed ? part.t() : part;
      };
      const Tensor a = random(m, k, of_a), b = random(k, n, of_b), second_a = random(m, 5, false),
                   second_b = random(5, n, true);
      const Tensor one = at::mm(used(a, of_a), used(b, of_b)),
                   two = one + at::mm(used(second_a, false), used(second_b, true));
      const std::vector<ops::Product> products = {{k, AsMatrix(a, of_a), AsMatrix(b, of_b)},
                                                  {5, AsMatrix(second_a, false), AsMatrix(second_b, true)}};
      const double tolerance = 1e-6 * static_cast<double>(k) + 1e-5;
      Tensor c = at::full({m, n}, NAN);  // as in memory that is fresh
      ops::ParallelMultiply(m, n, products, ops::Result<float>{c.mutable_data_ptr<float>(), n});
      EXPECT_TRUE(at::allclose(c.to(at::kDouble), two, 0, tolerance));
      ops::ParallelMultiply(m, n, {products[0]}, ops::Result<float>{c.mutable_data_ptr<float>(), n, /*add=*/true});
      EXPECT_TRUE(at::allclose(c.to(at::kDouble), two + one, 0, 2 * tolerance));
      Tensor rounded = at::full({m, n + 7}, 3, at::kBFloat16);
      ops::ParallelMultiply(m, n, products,
                            ops::Result<uint16_t>{static_cast<uint16_t*>(rounded.mutable_data_ptr()), n + 7});
      EXPECT_TRUE(at::allclose(rounded.slice(1, 0, n).to(at::kDouble), two, /*rtol=*/1.0 / 256, tolerance));
      EXPECT_TRUE((rounded.slice(1, n) == 3).all().item<bool>()) << "numbers beside the result have changed";
    }
  }
}

// Adam divides by the size of a gradient: what rounding leaves of one that is zero would move weights at full speed.
TEST(OpsTest, ATokenThatSeesItselfOnlyGivesItsScoreNoGradient) {
  const Tensor q = at::randn({5, 4, 8}).set_requires_grad(true), k = at::randn({5, 2, 8}).set_requires_grad(true);
  const Tensor v = at::randn({5, 2, 8});
  for (const double softcap : {0.0, 1.5}) {
    q.mutable_grad() = k.mutable_grad() = Tensor();
    const Tensor out = ops::PackedAttention(q, k, v, {{0, 5}}, {0.3, /*window=*/1, softcap});
    (out * at::randn({5, 4, 8})).sum().backward();
    EXPECT_EQ(q.grad().abs().max().item<double>(), 0) << softcap;
    EXPECT_EQ(k.grad().abs().max().item<double>(), 0) << softcap;
  }
}

TEST(OpsTest, PackedAttentionCapsScoresBeforeMasking) {
  ExpectEachDocumentAlone({0.9, 0, 1.5});
  ExpectEachDocumentAlone({0.9, 4, 1.5});
}

void ExpectDropoutInTrainingOnly() {
  const ops::Documents documents = {{0, 64}};
  const Tensor q = at::zeros({64, 4, 8}), k = at::zeros({64, 4, 8}), v = at::ones({64, 4, 8}).set_requires_grad(true);
  for (const double softcap : {0.0, 2.0}) {
    const ops::AttentionForm form{1, 0, softcap, 0.5};
    const Tensor dropped = ops::PackedAttention(q, k, v, documents, form);
    EXPECT_GT((dropped - 1).abs().max().item<double>(), 0.05);
    EXPECT_NEAR(dropped.mean().item<double>(), 1, 0.1);
    at::NoGradGuard no_grad;
    EXPECT_LT((ops::PackedAttention(q, k, v, documents, form) - 1).abs().max().item<double>(), kTolerance);
  }
}

TEST(OpsTest, AttentionDropoutActsInTrainingOnlyAndKeepsTheMean) {
  ExpectDropoutInTrainingOnly();
  const ops::WithoutKernels composed;
  ExpectDropoutInTrainingOnly();
}

// Every position of a document, one at a time against the cache, equals the whole document at once.
void ExpectCachedEqualsPacked() {
  const int64_t lengths[] = {9, 4, 1};
  const ops::Documents documents = {{0, 9}, {9, 13}, {13, 14}};
  const Tensor q = at::randn({14, 4, 8}), k = at::randn({14, 2, 8}), v = at::randn({14, 2, 8});
  for (const ops::AttentionForm& form : {ops::AttentionForm{0.4}, {0.4, 3}, {0.4, 0, 1.5}, {0.4, 3, 1.5}}) {
    const Tensor expected = ops::PackedAttention(q, k, v, documents, form);
    // What lies beyond a row's position must not be seen, so it is filled with what would show.
    Tensor keys = at::full({3, 2, 12, 8}, 50.0), values = at::full({3, 2, 12, 8}, 1000.0);
    for (int64_t b = 0; b < 3; ++b) {
      const auto [begin, end] = documents[static_cast<size_t>(b)];
      keys[b].slice(1, 0, lengths[b]).copy_(k.slice(0, begin, end).transpose(0, 1));
      values[b].slice(1, 0, lengths[b]).copy_(v.slice(0, begin, end).transpose(0, 1));
    }
    for (int64_t step = 0; step < 9; ++step) {
      std::vector<int64_t> positions, rows;
      for (int64_t b = 0; b < 3; ++b) {
        positions.push_back(std::min(step, lengths[b] - 1));
        rows.push_back(documents[static_cast<size_t>(b)].first + positions.back());
      }
      const Tensor row_ids = at::tensor(rows, at::kLong);
      const Tensor got =
          ops::CachedAttention(q.index_select(0, row_ids), keys, values, at::tensor(positions, at::kLong), form);
      EXPECT_LT((got - expected.index_select(0, row_ids)).abs().max().item<double>(), kTolerance)
          << "window " << form.window;
    }
  }
}

TEST(OpsTest, CachedAttentionEqualsPackedAttention) {
  ExpectCachedEqualsPacked();
  const ops::WithoutKernels composed;
  ExpectCachedEqualsPacked();
}

TEST(OpsTest, ChunkedCrossEntropyEqualsTheWholeLogits) {
  const Tensor h = Random({1100, 6}), head = Random({13, 6});  // more than two chunks
  const Tensor labels = at::randint(0, 13, {1100}, at::kLong);
  ExpectEqual(
      {h, head}, [&] { return ops::SumCrossEntropy(h, head, labels) / 100; },
      [&] { return at::cross_entropy_loss(at::linear(h, head), labels, {}, at::Reduction::Sum) / 100; });
}

TEST(OpsTest, CrossEntropyOfScaledAndCappedLogitsEqualsItsFormula) {
  const Tensor h = Random({700, 6}), head = Random({13, 6});
  const Tensor labels = at::randint(0, 13, {700}, at::kLong);
  for (const ops::LogitForm& form : {ops::LogitForm{0.6}, {1, 2.0}, {1.7, 0.8}}) {
    ExpectEqual(
        {h, head}, [&] { return ops::SumCrossEntropy(h, head, labels, form) / 100; },
        [&] {
          return at::cross_entropy_loss(ops::ApplyLogitForm(at::linear(h, head), form), labels, {},
                                        at::Reduction::Sum) /
                 100;
        });
  }
  const Tensor raw = at::linear(h, head);
  EXPECT_LT((ops::ApplyLogitForm(raw, {1.7, 0.8}) - 0.8 * at::tanh(1.7 * raw / 0.8)).abs().max().item<double>(),
            kTolerance);
}

TEST(OpsTest, CrossEntropyOfNoTrainedTokenIsZeroAndHasAGradient) {
  const Tensor h = Random({0, 6}), head = Random({13, 6});
  const Tensor loss = ops::SumCrossEntropy(h, head, at::empty({0}, at::kLong));
  EXPECT_EQ(loss.item<double>(), 0);
  loss.backward();
  EXPECT_EQ(head.grad().abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace luthier
