// The inner loops against the C library's mathematics, at the edges where vectorised code goes wrong.
#include "worker/trainer/ops/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace luthier::ops::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Random(size_t n, float spread, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(KernelsTest, ExpAgreesWithTheLibraryToAFewUnitsInTheLastPlace) {
  for (float x = -87; x < 88; x += 0.0371f) {
    float value = x;
    ExpMinus(&value, 1, 1, 0);
    EXPECT_NEAR(value / std::exp(static_cast<double>(x)), 1, 4e-7) << "exp(" << x << ")";
  }
}

TEST(KernelsTest, ExpOfTheSmallestIsNothingAndOfNanIsNan) {
  float values[] = {-kInfinity, -1000, kNan};
  ExpMinus(values, 3, 1, 0);
  EXPECT_LT(values[0], 1e-37f);
  EXPECT_LT(values[1], 1e-37f);
  EXPECT_TRUE(std::isnan(values[2]));
}

// Lengths around every vector width: the rest of a row behind the last full vector is where loops break.
class RowLength : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Lengths, RowLength, ::testing::Values(1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1000));

TEST_P(RowLength, SoftmaxSumsToOneAndReturnsItsLogarithmicSum) {
  std::vector<float> x = Random(static_cast<size_t>(GetParam()), 10, 1);
  double sum = 0;
  for (const float value : x) sum += std::exp(0.5 * value);
  std::vector<float> expected;
  for (const float value : x) expected.push_back(static_cast<float>(std::exp(0.5 * value) / sum));
  std::vector<float> again = x;
  EXPECT_NEAR(Softmax(x.data(), GetParam(), 0.5f), std::log(sum), 1e-5);
  ExpMinus(again.data(), GetParam(), 0.5f, static_cast<float>(std::log(sum)));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(again[i], expected[i], 1e-6);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], expected[i], 1e-6);
}

TEST_P(RowLength, SwiGluAndItsGradientAgreeWithTheFormula) {
  const auto n = static_cast<size_t>(GetParam());
  const std::vector<float> gate = Random(n, 4, 2), up = Random(n, 1, 3), dy = Random(n, 1, 4);
  std::vector<float> y(n), dgate(n), dup(n);
  SwiGlu(gate.data(), up.data(), GetParam(), y.data());
  SwiGluBackward(gate.data(), up.data(), dy.data(), GetParam(), dgate.data(), dup.data());
  for (size_t i = 0; i < n; ++i) {
    const double g = gate[i], sigmoid = 1 / (1 + std::exp(-g));
    EXPECT_NEAR(y[i], g * sigmoid * up[i], 1e-5);
    EXPECT_NEAR(dup[i], dy[i] * g * sigmoid, 1e-5);
    EXPECT_NEAR(dgate[i], dy[i] * up[i] * sigmoid * (1 + g * (1 - sigmoid)), 1e-5);
  }
}

TEST_P(RowLength, GeGluAndItsGradientAgreeWithTheFormula) {
  const auto n = static_cast<size_t>(GetParam());
  const std::vector<float> gate = Random(n, 3, 10), up = Random(n, 1, 11), dy = Random(n, 1, 12);
  std::vector<float> y(n), dgate(n), dup(n);
  GeGlu(gate.data(), up.data(), GetParam(), y.data());
  GeGluBackward(gate.data(), up.data(), dy.data(), GetParam(), dgate.data(), dup.data());
  const auto gelu = [](double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  for (size_t i = 0; i < n; ++i) {
    const double slope = (gelu(gate[i] + 1e-5) - gelu(gate[i] - 1e-5)) / 2e-5;
    EXPECT_NEAR(y[i], gelu(gate[i]) * up[i], 1e-5);
    EXPECT_NEAR(dup[i], gelu(gate[i]) * dy[i], 1e-5);
    EXPECT_NEAR(dgate[i], slope * up[i] * dy[i], 1e-5);
  }
}

TEST_P(RowLength, SoftCapAndItsSlopeAgreeWithTheFormula) {
  const auto n = static_cast<size_t>(GetParam());
  std::vector<float> x = Random(n, 3, 9), slope(n);
  x[0] = 1e-4f;
  const std::vector<float> before = x;
  std::vector<float> without_slope = x;
  SoftCap(x.data(), GetParam(), 1, 2.5f, slope.data());
  SoftCap(without_slope.data(), GetParam(), 1, 2.5f, nullptr);
  std::vector<float> scaled = before;
  for (float& value : scaled) value *= 2;
  SoftCap(scaled.data(), GetParam(), 0.5f, 2.5f, nullptr);
  EXPECT_EQ(scaled, without_slope);
  for (size_t i = 0; i < n; ++i) {
    const double tanh = std::tanh(before[i] / 2.5);
    EXPECT_NEAR(x[i], 2.5 * tanh, 1e-6 * std::max(0.01, std::abs(tanh)));
    EXPECT_NEAR(slope[i], 1 - tanh * tanh, 1e-6);
    EXPECT_NEAR(without_slope[i], x[i], 1e-6);
  }
}

TEST_P(RowLength, ANanInARowReachesItsResults) {
  const auto n = static_cast<size_t>(GetParam());
  std::vector<float> x = Random(n, 1, 5), ones(n, 1.0f), y(n);
  x[n / 2] = kNan;
  EXPECT_TRUE(std::isnan(SumOfSquares(x.data(), GetParam())));
  EXPECT_TRUE(std::isnan(RmsNorm(x.data(), ones.data(), GetParam(), 1e-5f, y.data())));
  SwiGlu(x.data(), ones.data(), GetParam(), y.data());
  EXPECT_TRUE(std::isnan(y[n / 2]));
  std::vector<float> logits = x;
  EXPECT_TRUE(std::isnan(Softmax(logits.data(), GetParam(), 1)));
}

TEST_P(RowLength, AdamWMovesEachParameterAsTheFormulaSays) {
  const auto n = static_cast<size_t>(GetParam());
  const std::vector<float> gradient = Random(n, 1, 6), before = Random(n, 1, 7);
  std::vector<float> parameter = before, m = Random(n, 0.1f, 8), v(n, 0.04f);
  const std::vector<float> m_before = m;
  AdamW({0.01f, 0.5f, 0.9f, 0.95f, 1e-8f, 0.999f, 2.0f}, gradient.data(), GetParam(), parameter.data(), m.data(),
        v.data());
  for (size_t i = 0; i < n; ++i) {
    const double g = 2.0 * gradient[i], first = 0.9 * m_before[i] + 0.1 * g, second = 0.95 * 0.04 + 0.05 * g * g;
    EXPECT_NEAR(m[i], first, 1e-6);
    EXPECT_NEAR(v[i], second, 1e-6 * (1 + g * g));
    EXPECT_NEAR(parameter[i], 0.999 * before[i] - 0.01 * first / (std::sqrt(second) / 0.5 + 1e-8), 1e-6);
  }
}

// In fp32, 1 - 0.999 is off by 1.3e-5 of it, which torch.optim.AdamW is not.
TEST(KernelsTest, AdamWTakesWhatIsLeftOfABetaExactly) {
  const float gradient = 1;
  float parameter = 0, m = 0, v = 0;
  AdamW({0, 1, 0.99, 0.999, 1e-8f, 1, 1}, &gradient, 1, &parameter, &m, &v);
  EXPECT_FLOAT_EQ(m, 0.01f);
  EXPECT_FLOAT_EQ(v, 0.001f);
}

// In fp32 it is 1, and what is kept would be divided by 0.
TEST(KernelsTest, DropoutOfAlmostAllStaysFinite) {
  const std::vector<float> ones(1000, 1.0f);
  std::vector<float> y(ones.size());
  Dropout(ones.data(), 1000, 42, 0, 0.99999999, y.data());
  for (const float value : y) EXPECT_TRUE(std::isfinite(value));
}

TEST(KernelsTest, DropoutDropsItsShareAndTheSameOnesEveryTime) {
  constexpr int64_t kSize = 1000, kRows = 200;
  const std::vector<float> ones(kSize, 1.0f);
  std::vector<float> first(kSize), again(kSize), next(kSize);
  double sum = 0, pairs = 0, rows = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    Dropout(ones.data(), kSize, 42, row, 0.25f, first.data());
    Dropout(ones.data(), kSize, 42, row, 0.25f, again.data());
    ASSERT_EQ(first, again);
    Dropout(ones.data(), kSize, 42, row + 1, 0.25f, next.data());
    for (size_t i = 0; i < kSize; ++i) {
      ASSERT_TRUE(first[i] == 0 || std::abs(first[i] - 1 / 0.75f) < 1e-6f);
      sum += first[i];
      pairs += first[i] * first[(i + 1) % kSize];
      rows += first[i] * next[i];
    }
  }
  // Neighbours in a row and in a column are independent: the mean of products is the product of means. 200,000 draws,
  // so a deviation of 0.01 is 6 standard deviations and more.
  EXPECT_NEAR(sum / (kSize * kRows), 1, 0.01);
  EXPECT_NEAR(pairs / (kSize * kRows), 1, 0.01);
  EXPECT_NEAR(rows / (kSize * kRows), 1, 0.01);
}

TEST(KernelsTest, NarrowingRoundsToNearestEvenAndKeepsNanAndInfinity) {
  const float values[] = {1.0f, 1.00390625f, 1.01171875f, 1.005f, -3.14159f, kInfinity, -kInfinity, kNan, 3.4e38f};
  constexpr int64_t kCount = std::size(values);
  uint16_t narrow[kCount];
  float wide[kCount];
  Narrow(values, kCount, narrow);
  Widen(narrow, kCount, wide);
  EXPECT_EQ(wide[0], 1.0f);
  EXPECT_EQ(wide[1], 1.0f);       // halfway between 1 and 1.0078125: to the even one
  EXPECT_EQ(wide[2], 1.015625f);  // halfway again: up to the even one
  EXPECT_EQ(wide[3], 1.0078125f);
  EXPECT_NEAR(wide[4], -3.14159f, 0.01);
  EXPECT_EQ(wide[5], kInfinity);
  EXPECT_EQ(wide[6], -kInfinity);
  EXPECT_TRUE(std::isnan(wide[7]));
  EXPECT_EQ(wide[8], kInfinity);  // beyond the largest bf16
}

}  // namespace
}  // namespace luthier::ops::kernels
