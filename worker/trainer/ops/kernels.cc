// Loops are written so that GCC and Clang vectorise them: no branches but selects, no calls but inlined ones, and sums
// that may be reordered say so (omp simd). NaN and infinity pass through every loop, because the check before the
// optimizer step relies on seeing them.
#include "worker/trainer/ops/kernels.h"

#include <bit>
#include <cmath>

// One copy of the function for each instruction set; the loader picks.
#define LUTHIER_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define LUTHIER_INLINE inline __attribute__((always_inline))

namespace luthier::ops::kernels {
namespace {

// exp to 2 units in the last place: 2^k · p(r) with |r| <= ln(2)/2 (Cephes' expf). Beyond the range of fp32 it
// saturates.
LUTHIER_INLINE float Exp(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.37626f;  // exp of them is the smallest normal number, and 2^127.5
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it leaves no room for a fraction
  const float clamped = x < kLowest ? kLowest : (x > kHighest ? kHighest : x);
  const float k = (clamped * kLog2E + kRound) - kRound;
  const float r = clamped - k * kLn2High - k * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(k) + 127) << 23);
}

constexpr float kGeluScale = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

LUTHIER_INLINE float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

// Near 0 its series: the quotient would lose the digits of a small x.
LUTHIER_INLINE float Tanh(float x) {
  const float square = x * x;
  const float series = x * (1.0f + square * (-1.0f / 3 + square * (2.0f / 15 - square * (17.0f / 315))));
  const float quotient = 1.0f - 2.0f / (Exp(2.0f * x) + 1.0f);
  return square < 0.04f ? series : quotient;
}

}  // namespace

LUTHIER_EVERY_CPU void Widen(const uint16_t* x, int64_t n, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = std::bit_cast<float>(static_cast<uint32_t>(x[i]) << 16);
}

LUTHIER_EVERY_CPU void Narrow(const float* x, int64_t n, uint16_t* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<uint32_t>(x[i]);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    // Rounding could carry a NaN's bits over into infinity or zero.
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    y[i] = static_cast<uint16_t>(nan ? 0x7FC0u : rounded);
  }
}

LUTHIER_EVERY_CPU float SumOfSquares(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

LUTHIER_EVERY_CPU float RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
  const float inverse_rms = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inverse_rms * w[i];
  return inverse_rms;
}

LUTHIER_EVERY_CPU void RmsNormBackward(const float* x, const float* w, const float* dy, float inverse_rms, int64_t n,
                                       float* dx, float* dw) {
  float dot = 0;  // Σ dy · w · x
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += dy[i] * w[i] * x[i];
  const float pull = dot * inverse_rms * inverse_rms / static_cast<float>(n);
  if (dw == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) dx[i] = (dy[i] * w[i] - x[i] * pull) * inverse_rms;
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    dw[i] += dy[i] * x[i] * inverse_rms;
    dx[i] = (dy[i] * w[i] - x[i] * pull) * inverse_rms;
  }
}

LUTHIER_EVERY_CPU void Rotate(const float* x, const float* cos, const float* sin, int64_t pairs, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const float first = x[i], second = x[i + pairs];
    y[i] = first * cos[i] - second * sin[i];
    y[i + pairs] = second * cos[i] + first * sin[i];
  }
}

LUTHIER_EVERY_CPU void RotateBack(const float* x, const float* cos, const float* sin, int64_t pairs, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const float first = x[i], second = x[i + pairs];
    y[i] = first * cos[i] + second * sin[i];
    y[i + pairs] = second * cos[i] - first * sin[i];
  }
}

LUTHIER_EVERY_CPU void SwiGlu(const float* gate, const float* up, int64_t n, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * Sigmoid(gate[i]) * up[i];
}

LUTHIER_EVERY_CPU void SwiGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                                      float* dup) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float sigmoid = Sigmoid(gate[i]);
    const float silu = gate[i] * sigmoid;
    dup[i] = dy[i] * silu;
    dgate[i] = dy[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
  }
}

LUTHIER_EVERY_CPU void GeGlu(const float* gate, const float* up, int64_t n, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    y[i] = 0.5f * x * (1.0f + Tanh(kGeluScale * (x + kGeluCubic * x * x * x))) * up[i];
  }
}

LUTHIER_EVERY_CPU void GeGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate,
                                     float* dup) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float tanh = Tanh(kGeluScale * (x + kGeluCubic * x * x * x));
    const float slope = kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);  // of what is inside tanh
    dup[i] = dy[i] * 0.5f * x * (1.0f + tanh);
    dgate[i] = dy[i] * up[i] * 0.5f * (1.0f + tanh + x * (1.0f - tanh * tanh) * slope);
  }
}

LUTHIER_EVERY_CPU float Softmax(float* x, int64_t n, float scale) {
  float highest = -INFINITY;
#pragma omp simd reduction(max : highest)
  for (int64_t i = 0; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
  highest *= scale;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = Exp(x[i] * scale - highest);
    sum += x[i];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= inverse;
  return highest + std::log(sum);
}

LUTHIER_EVERY_CPU void ExpMinus(float* x, int64_t n, float scale, float shift) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = Exp(x[i] * scale - shift);
}

LUTHIER_EVERY_CPU void SoftmaxBackward(const float* p, int64_t n, float delta, float scale, float* dp) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dp[i] = p[i] * (dp[i] - delta) * scale;
}

LUTHIER_EVERY_CPU void SoftCap(float* x, int64_t n, float scale, float cap, float* slope) {
  const float inverse = scale / cap;
  if (slope == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = cap * Tanh(x[i] * inverse);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float tanh = Tanh(x[i] * inverse);
    x[i] = cap * tanh;
    slope[i] = 1.0f - tanh * tanh;
  }
}

LUTHIER_EVERY_CPU void Multiply(const float* x, int64_t n, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] *= x[i];
}

// Each row has two keys of its own; a position is mixed with them by Wellons' lowbias32, whose output bits are as good
// as random and which needs 32-bit arithmetic only, so that it is vectorised.
LUTHIER_EVERY_CPU void Dropout(const float* x, int64_t n, uint64_t seed, int64_t row, double drop, float* y) {
  uint64_t mixed = seed + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(row) + 1);  // SplitMix64
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  mixed ^= mixed >> 31;
  const auto key = static_cast<uint32_t>(mixed), second_key = static_cast<uint32_t>(mixed >> 32);
  // In double: the largest shares below 1 are 1 in fp32, and nothing may be divided by 0.
  const auto threshold = static_cast<uint32_t>(drop * 4294967296.0);
  const auto kept = static_cast<float>(1 / (1 - drop));
  const auto count = static_cast<uint32_t>(n);
#pragma omp simd
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t h = i + key;
    h = (h ^ (h >> 16)) * 0x21F0AAADu;
    h = ((h ^ (h >> 15)) + second_key) * 0x735A2D97u;
    h ^= h >> 15;
    y[i] = h < threshold ? 0.0f : x[i] * kept;
  }
}

LUTHIER_EVERY_CPU float Dot(const float* x, const float* y, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

LUTHIER_EVERY_CPU void AdamW(const AdamStep& step, const float* gradient, int64_t n, float* parameter, float* m,
                             float* v) {
  const AdamStep s = step;  // locals: the loop's stores cannot change them
  // Of the betas as they were given: 1 - 0.999f is 0.001 but for 1.3e-5 of it.
  const auto beta2 = static_cast<float>(s.beta2);
  const auto share1 = static_cast<float>(1 - s.beta1), share2 = static_cast<float>(1 - s.beta2);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * s.gradient_scale;
    m[i] += (g - m[i]) * share1;
    v[i] = v[i] * beta2 + g * g * share2;
    parameter[i] = parameter[i] * s.decay - s.rate * m[i] / (std::sqrt(v[i]) / s.root + s.eps);
  }
}

}  // namespace luthier::ops::kernels
