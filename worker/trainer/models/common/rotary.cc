#include "worker/trainer/models/common/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace luthier {
namespace {

using Type = RopeConfig::Type;

// Exponents of theta, one a pair.
Tensor Exponents(const RopeConfig& rope) {
  return at::arange(0, rope.rotary_dim, 2, at::kFloat) / static_cast<double>(rope.rotary_dim);
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
Tensor ScaleLlama3(const Tensor& frequencies_P, const RopeConfig& rope) {
  const Tensor wavelengths_P = 2 * std::numbers::pi / frequencies_P;
  const auto context = static_cast<double>(rope.original_max_position_embeddings);
  const Tensor blend_P =
      (context / wavelengths_P - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const Tensor blended_P = (1 - blend_P) * frequencies_P / rope.factor + blend_P * frequencies_P;
  const Tensor long_P = wavelengths_P > context / rope.low_freq_factor;
  const Tensor short_P = wavelengths_P < context / rope.high_freq_factor;
  return at::where(long_P, frequencies_P / rope.factor, at::where(short_P, frequencies_P, blended_P));
}

// The pair that turns `rotations` times over the original context.
double PairOfRotations(double rotations, const RopeConfig& rope) {
  const auto context = static_cast<double>(rope.original_max_position_embeddings);
  return static_cast<double>(rope.rotary_dim) * std::log(context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

// YaRN (arXiv:2309.00071, section 3.2): pairs that turn often are kept, those that turn less than once are stretched by
// `factor`, with a ramp between.
Tensor ScaleYarn(const Tensor& frequencies_P, const RopeConfig& rope) {
  double first = PairOfRotations(rope.beta_fast, rope), last = PairOfRotations(rope.beta_slow, rope);
  if (rope.truncate) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, static_cast<double>(rope.rotary_dim - 1));
  if (first == last) last += 0.001;  // else the ramp divides by zero
  // As transformers rounds it: the last bit of a frequency is 1e-4 in the logits of a token far behind.
  const Tensor kept_P = 1 - ((at::arange(frequencies_P.size(0), at::kFloat) - first) / (last - first)).clamp(0, 1);
  return frequencies_P / rope.factor * (1 - kept_P) + frequencies_P * kept_P;
}

Tensor ScaleByList(const Tensor& exponents_P, const RopeConfig& rope, const std::vector<double>& factors) {
  return (at::tensor(factors, at::kFloat) * at::pow(rope.theta, exponents_P)).reciprocal();
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(const RopeConfig& rope, at::Device device) : rope_(rope) {
  const Tensor exponents_P = Exponents(rope);
  frequencies_P_ = at::pow(rope.theta, exponents_P).reciprocal();
  switch (rope.type) {
    case Type::kDefault:
    case Type::kDynamic: break;
    case Type::kLinear: frequencies_P_ = frequencies_P_ / rope.factor; break;
    case Type::kYarn: frequencies_P_ = ScaleYarn(frequencies_P_, rope); break;
    case Type::kLongrope:
      frequencies_P_ = ScaleByList(exponents_P, rope, rope.short_factors);
      long_frequencies_P_ = ScaleByList(exponents_P, rope, rope.long_factors).to(device);
      break;
    case Type::kLlama3: frequencies_P_ = ScaleLlama3(frequencies_P_, rope); break;
  }
  frequencies_P_ = frequencies_P_.to(device);
}

Tensor RotaryEmbedding::Frequencies(const Tensor& lengths_T) const {
  const auto original = static_cast<double>(rope_.original_max_position_embeddings);
  if (rope_.type == Type::kLongrope) {
    return at::where((lengths_T > original).unsqueeze(1), long_frequencies_P_, frequencies_P_);
  }
  if (rope_.type == Type::kDynamic) {
    // NTK-aware: the base grows with the length, so that the slowest pair just covers it.
    const auto dim = static_cast<double>(rope_.rotary_dim);
    const Tensor lengths_T1 = lengths_T.to(at::kDouble).clamp_min(original).unsqueeze(1);
    const Tensor theta_T1 =
        rope_.theta * (rope_.factor * lengths_T1 / original - (rope_.factor - 1)).pow(dim / (dim - 2));
    return at::pow(theta_T1.to(at::kFloat), Exponents(rope_).to(lengths_T.device())).reciprocal();
  }
  return frequencies_P_;
}

int64_t RotaryEmbedding::switch_length() const {
  return rope_.type == Type::kLongrope || rope_.type == Type::kDynamic ? rope_.original_max_position_embeddings : 0;
}

ops::RotaryTable RotaryEmbedding::operator()(const Tensor& positions_T, const Tensor& lengths_T) const {
  at::NoGradGuard no_grad;
  const Tensor angles_TP = positions_T.to(at::kFloat).unsqueeze(1) * Frequencies(lengths_T);
  if (rope_.attention_factor == 1) return {angles_TP.cos(), angles_TP.sin()};
  return {angles_TP.cos() * rope_.attention_factor, angles_TP.sin() * rope_.attention_factor};
}

}  // namespace luthier
