#include "worker/trainer/models/common/embedding.h"

namespace luthier {

Tensor Embedding::operator()(const Tensor& tokens_T, const AdapterSlices& slices,
                             std::optional<at::ScalarType> type) const {
  if (adapters_.empty()) return Rows(tokens_T, type);
  return InSlices(tokens_T, slices, [&](const Tensor& tokens, size_t adapter) {
    return Adapted(Rows(tokens, type), tokens, adapters_[adapter]);
  });
}

Tensor Embedding::Rows(const Tensor& tokens_T, std::optional<at::ScalarType> type) const {
  Tensor x_TD = at::embedding(weight_VD_, tokens_T, padding_token_);
  if (type) x_TD = x_TD.to(*type);
  return scale_ == 1 ? x_TD : x_TD * scale_;
}

// Columns of A are looked up as rows of the weight are, so a token costs the same however large V is. The gradient of A
// is as large as A, R · V numbers: the optimizer moves tokens that a step does not see too, by what is left of earlier
// gradients, and so does PEFT's.
Tensor Embedding::Adapted(const Tensor& x_TD, const Tensor& tokens_T, const LoraWeights& lora) const {
  if (!lora.a_RI.defined()) return x_TD;
  const Tensor down_TR = at::embedding(lora.a_RI.t(), tokens_T, padding_token_);
  Tensor y_TD = x_TD + at::linear(down_TR, lora.b_OR) * (lora.scale * scale_);
  if (lora.magnitude_O.defined()) y_TD = y_TD * DoraFactors(weight_VD_.t(), lora);
  return y_TD.to(x_TD.scalar_type());
}

}  // namespace luthier
