#include "worker/trainer/models/common/rotary.h"

#include <numbers>

namespace luthier {
namespace {

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
Tensor ScaleLlama3(const Tensor& frequencies_P, const RopeConfig& rope) {
  const Tensor wavelengths_P = 2 * std::numbers::pi / frequencies_P;
  const double context = rope.original_max_position_embeddings;
  const Tensor blend_P = (context / wavelengths_P - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const Tensor blended_P = (1 - blend_P) * frequencies_P / rope.factor + blend_P * frequencies_P;
  const Tensor long_P = wavelengths_P > context / rope.low_freq_factor;
  const Tensor short_P = wavelengths_P < context / rope.high_freq_factor;
  return at::where(long_P, frequencies_P / rope.factor, at::where(short_P, frequencies_P, blended_P));
}

}  // namespace

Tensor InverseFrequencies(const RopeConfig& rope, int64_t head_dim) {
  const Tensor exponents_P = at::arange(0, head_dim, 2, at::kFloat) / static_cast<double>(head_dim);
  const Tensor frequencies_P = at::pow(rope.theta, exponents_P).reciprocal();
  switch (rope.type) {
    case RopeConfig::Type::kDefault:
      return frequencies_P;
    case RopeConfig::Type::kLinear:
      return frequencies_P / rope.factor;
    case RopeConfig::Type::kLlama3:
      return ScaleLlama3(frequencies_P, rope);
  }
  return frequencies_P;
}

ops::RotaryTable MakeRotaryTable(const Tensor& positions_T, const Tensor& inverse_frequencies_P) {
  const Tensor angles_TP = at::outer(positions_T.to(at::kFloat), inverse_frequencies_P);
  return {angles_TP.cos(), angles_TP.sin()};
}

}  // namespace luthier
