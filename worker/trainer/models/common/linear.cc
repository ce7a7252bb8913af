#include "worker/trainer/models/common/linear.h"

#include "worker/trainer/ops/ops.h"

namespace luthier {

Tensor PlainLinear::operator()(const Tensor& x_TI, const AdapterSlices&) const { return at::linear(x_TI, weight_OI_); }

Tensor LoraLinear::operator()(const Tensor& x_TI, const AdapterSlices& slices) const {
  std::vector<Tensor> parts;
  for (const AdapterSlice& slice : slices) {
    const LoraWeights& lora = adapters_[slice.adapter];
    // Only training records gradients; evaluation, generation and the check of an export must not drop anything.
    const double dropout = at::GradMode::is_enabled() ? lora.dropout : 0;
    const Tensor x = slices.size() == 1 ? x_TI : x_TI.slice(0, slice.begin, slice.end);
    parts.push_back(lora.a_RI.defined() ? ops::LoraLinear(x, weight_OI_, lora.a_RI, lora.b_OR, lora.scale, dropout)
                                        : at::linear(x, weight_OI_));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace luthier
