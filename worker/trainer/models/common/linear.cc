#include "worker/trainer/models/common/linear.h"

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/linear.h"

namespace luthier {
namespace {

// Only training records gradients; evaluation, generation and the check of an export must not drop anything.
double ActiveDropout(const LoraWeights& lora) { return at::GradMode::is_enabled() ? lora.dropout : 0; }

Tensor PlainLora(const Tensor& x_TI, const Tensor& weight_OI, const LoraWeights& lora, double dropout) {
  return ops::LoraLinears(x_TI, {{weight_OI, lora.a_RI, lora.b_OR, lora.scale}}, dropout)[0];
}

}  // namespace

std::vector<Tensor> Together(const Tensor& x_TI, const AdapterSlices& slices,
                             const std::vector<const Linear*>& layers) {
  std::vector<ops::LoraLayer> lora_layers;
  bool adapted = false;
  for (const Linear* layer : layers) {
    const auto lora = slices.size() == 1 ? layer->AsLoraLayer(slices[0].adapter) : std::nullopt;
    if (!lora) break;
    adapted = adapted || lora->a_RI.defined();
    lora_layers.push_back(*lora);
  }
  std::vector<Tensor> y_TO;
  if (adapted && lora_layers.size() == layers.size()) {
    y_TO = ops::LoraLinears(x_TI, lora_layers, /*dropout=*/0);
    for (size_t i = 0; i < layers.size(); ++i) y_TO[i] = layers[i]->WithBias(y_TO[i]);
  } else {
    for (const Linear* layer : layers) y_TO.push_back((*layer)(x_TI, slices));
  }
  return y_TO;
}

Tensor PlainLinear::operator()(const Tensor& x_TI, const AdapterSlices&) const {
  return ops::Linear(x_TI, weight_OI_, bias_O_);
}

std::optional<ops::LoraLayer> PlainLinear::AsLoraLayer(size_t /*adapter*/) const {
  if (weight_OI_.requires_grad()) return std::nullopt;
  return ops::LoraLayer{weight_OI_, Tensor(), Tensor()};
}

Tensor LoraLinear::operator()(const Tensor& x_TI, const AdapterSlices& slices) const {
  return InSlices(x_TI, slices, [&](const Tensor& x, size_t adapter) { return Adapted(x, adapters_[adapter]); });
}

Tensor LoraLinear::Adapted(const Tensor& x_TI, const LoraWeights& lora) const {
  if (!lora.a_RI.defined()) return ops::Linear(x_TI, weight_OI_, bias_O_);
  const double dropout = ActiveDropout(lora);
  return WithBias(lora.magnitude_O.defined() ? Dora(x_TI, lora, dropout) : PlainLora(x_TI, weight_OI_, lora, dropout));
}

std::optional<ops::LoraLayer> LoraLinear::AsLoraLayer(size_t adapter) const {
  const LoraWeights& lora = adapters_[adapter];
  if (lora.magnitude_O.defined() || ActiveDropout(lora) > 0) return std::nullopt;
  return ops::LoraLayer{weight_OI_, lora.a_RI, lora.b_OR, lora.scale};
}

Tensor LoraLinear::Dora(const Tensor& x_TI, const LoraWeights& lora, double dropout) const {
  const Tensor factors_O = DoraFactors(weight_OI_, lora).to(x_TI.scalar_type());
  if (dropout == 0) return PlainLora(x_TI, weight_OI_, lora, 0) * factors_O;
  // As in PEFT: what W alone computes sees everything, the change that the adapter makes sees what was kept.
  const Tensor kept_TI = ops::Dropout(x_TI, dropout);
  const Tensor adapted_TO = PlainLora(kept_TI, weight_OI_, lora, 0) * factors_O;
  return ops::Linear(x_TI - kept_TI, weight_OI_, Tensor()) + adapted_TO;
}

std::pair<Tensor, Tensor> LoraLinear::AsProduct(const Tensor& x_TI, size_t adapter) const {
  const LoraWeights& lora = adapters_[adapter];
  if (!lora.a_RI.defined()) return {x_TI, weight_OI_};
  const double dropout = ActiveDropout(lora);
  const Tensor kept_TI = dropout > 0 ? ops::Dropout(x_TI, dropout) : x_TI;
  const Tensor down_TR =
      (at::linear(kept_TI.to(lora.a_RI.scalar_type()), lora.a_RI) * lora.scale).to(x_TI.scalar_type());
  const Tensor b_OR = lora.b_OR.to(weight_OI_.scalar_type());
  if (!lora.magnitude_O.defined()) return {at::cat({x_TI, down_TR}, 1), at::cat({weight_OI_, b_OR}, 1)};
  const Tensor factors_O1 = DoraFactors(weight_OI_, lora).to(weight_OI_.scalar_type()).unsqueeze(1);
  return {at::cat({x_TI, kept_TI, down_TR}, 1),
          at::cat({weight_OI_, weight_OI_ * (factors_O1 - 1), b_OR * factors_O1}, 1)};
}

Tensor DoraFactors(const Tensor& weight_OI, const LoraWeights& lora) {
  Tensor lengths_O;
  {
    at::NoGradGuard no_grad;
    // |W + s·B·A|² = |W|² + 2s·W·(B·A) + s²·|B·A|² by rows, without the sum itself, which is as large as W.
    const Tensor a_RI = lora.a_RI.to(at::kFloat), b_OR = lora.b_OR.to(at::kFloat);
    const Tensor along_OR = ops::TimesTransposed(a_RI, weight_OI, at::kFloat).t();  // W·Aᵀ
    const Tensor across_OR = at::mm(b_OR, at::mm(a_RI, a_RI.t()));
    const Tensor added_O = (b_OR * (2 * lora.scale * along_OR + lora.scale * lora.scale * across_OR)).sum(1);
    lengths_O =
        (at::norm(weight_OI, 2, /*dim=*/1, /*keepdim=*/false, at::kFloat).square() + added_O).clamp_min(0).sqrt();
  }
  return lora.magnitude_O / lengths_O;
}

}  // namespace luthier
