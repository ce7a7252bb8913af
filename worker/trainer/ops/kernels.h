// Inner loops over contiguous fp32 numbers, compiled for SSE2, AVX2 and AVX-512: the best that the processor has is
// chosen when the program starts, so one binary serves every node. No LibTorch and no threads here; the operations own
// both.
#pragma once

#include <cstdint>

namespace luthier::ops::kernels {

// bf16 numbers as their bits. Widening is exact; narrowing rounds to nearest, ties to even.
void Widen(const uint16_t* x, int64_t n, float* y);
void Narrow(const float* x, int64_t n, uint16_t* y);

// Σ x², in lanes of fp32: call it on pieces of a few thousand numbers and add those in double.
float SumOfSquares(const float* x, int64_t n);

// y = x · inverse_rms · w, returning inverse_rms = 1 / sqrt(mean(x²) + eps).
float RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y);
// dx of it. `dw` += dy · x · inverse_rms, unless it is null.
void RmsNormBackward(const float* x, const float* w, const float* dy, float inverse_rms, int64_t n, float* dx,
                     float* dw);

// Pairs (x_i, x_{i+pairs}) turned by the angles of cos and sin.
void Rotate(const float* x, const float* cos, const float* sin, int64_t pairs, float* y);
// The same by the negative angles, which is also the transpose.
void RotateBack(const float* x, const float* cos, const float* sin, int64_t pairs, float* y);

// y = gate · sigmoid(gate) · up.
void SwiGlu(const float* gate, const float* up, int64_t n, float* y);
void SwiGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup);

// y = gelu(gate) · up, with gelu(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
void GeGlu(const float* gate, const float* up, int64_t n, float* y);
void GeGluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup);

// x = softmax(scale · x) in place, returning log(Σ exp(scale · x)).
float Softmax(float* x, int64_t n, float scale);
// x = exp(scale · x - shift) in place: the softmax again from its logarithmic sum.
void ExpMinus(float* x, int64_t n, float scale, float shift);
// ds = p · (dp - delta) · scale in place of dp: the gradient through a softmax whose delta = Σ p · dp is known.
void SoftmaxBackward(const float* p, int64_t n, float delta, float scale, float* dp);
// x = cap · tanh(scale · x / cap) in place. `slope`, unless it is null, becomes the derivative by scale · x.
void SoftCap(float* x, int64_t n, float scale, float cap, float* slope);
// y *= x.
void Multiply(const float* x, int64_t n, float* y);

// y = 0 with probability `drop`, else x / (1 - drop). Which ones fall is a function of seed, row and position alone, so
// that the mask need not be kept for the backward pass.
void Dropout(const float* x, int64_t n, uint64_t seed, int64_t row, double drop, float* y);

// Σ x · y, in lanes of fp32.
float Dot(const float* x, const float* y, int64_t n);

// One AdamW step of n parameters; `rate` = learning rate / (1 - beta1^t), `root` = sqrt(1 - beta2^t), `decay` = 1 -
// learning rate · weight decay. Gradients are multiplied by `gradient_scale` on the way.
struct AdamStep {
  float rate, root;
  double beta1, beta2;
  float eps, decay, gradient_scale;
};
void AdamW(const AdamStep& step, const float* gradient, int64_t n, float* parameter, float* m, float* v);

}  // namespace luthier::ops::kernels
