// Every operation with an explicit backward against its plain form under recorded autograd, in random shapes: by its
// kernels, and by the operations that GPUs use.
#include "worker/trainer/ops/ops.h"

#include "worker/trainer/ops/gemm.h"
#include "worker/trainer/ops/place.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace luthier {
namespace {

constexpr double kTolerance = 2e-5;

Tensor Random(std::vector<int64_t> shape) { return at::randn(shape).set_requires_grad(true); }

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
      {x, a, b}, [&] { return ops::LoraLinear(x, weight, a, b, 0.7, 0); },
      [&] { return at::linear(x, weight + 0.7 * at::mm(b, a)); });
}

void ExpectOneMask() {
  const Tensor x = at::ones({200, 4}).set_requires_grad(true), weight = at::zeros({4, 4});
  const Tensor eye = at::eye(4).set_requires_grad(true), b = at::eye(4).set_requires_grad(true);
  const Tensor y = ops::LoraLinear(x, weight, eye, b, 1.0, 0.25);
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
  for (const ops::AttentionForm& form : {ops::AttentionForm{0.35}, {0.35, 5}, {0.35, 0, 1.5}}) {
    const auto leaf = [](int64_t heads) { return at::randn({176, heads, 8}).to(at::kBFloat16); };
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
      EXPECT_LT(((rounded[i].to(at::kFloat) - exact[i]).norm() / exact[i].norm()).item<double>(), 0.01) << i;
    }
  }
  if (!ops::HasBf16Tiles()) GTEST_SKIP() << "SKIPPED: no tiles (AMX) here, so products of bf16 were not tested";
}

TEST(OpsTest, Bf16ProductsKeepTheirSums) {
  for (const bool transposed_a : {false, true}) {
    for (const bool transposed_b : {false, true}) {
      const int64_t m = 19, n = 33, k = 70, a_pitch = (transposed_a ? m : k) + 3, b_pitch = (transposed_b ? k : n) + 5;
      const Tensor a = at::randn({transposed_a ? k : m, a_pitch}).to(at::kBFloat16),
                   b = at::randn({transposed_b ? n : k, b_pitch}).to(at::kBFloat16);
      const auto matrix = [](const Tensor& x, bool transposed) {
        return ops::Matrix<uint16_t>{static_cast<const uint16_t*>(x.const_data_ptr()), x.size(1), transposed};
      };
      const auto part = [](const Tensor& x, bool transposed, int64_t columns) {
        const Tensor used = x.to(at::kDouble).slice(1, 0, columns);
        return transposed ? used.t() : used;
      };
      Tensor c = at::ones({m, n});
      const Tensor expected = 2 * at::mm(part(a, transposed_a, a_pitch - 3), part(b, transposed_b, b_pitch - 5)) + 0.5;
      ops::Gemm(m, n, k, 2, matrix(a, transposed_a), matrix(b, transposed_b), 0.5, c.mutable_data_ptr<float>(), n);
      EXPECT_LT((c - expected).abs().max().item<double>(), 1e-4) << transposed_a << transposed_b;
      c.fill_(NAN);  // as in memory that is fresh
      ops::Gemm(m, n, k, 2, matrix(a, transposed_a), matrix(b, transposed_b), 0, c.mutable_data_ptr<float>(), n);
      EXPECT_LT((c - (expected - 0.5)).abs().max().item<double>(), 1e-4) << transposed_a << transposed_b;
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
