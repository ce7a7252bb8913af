#include "worker/trainer/models/common/builder.h"

namespace luthier {

std::unique_ptr<Linear> Builder::MakeLinear(const std::string& name) const {
  const auto bias = weights_.find(prefix_ + name + ".bias");
  Tensor bias_O = bias == weights_.end() ? Tensor() : bias->second;
  const auto adapters = lora_.find(prefix_ + name);
  if (adapters == lora_.end()) return std::make_unique<PlainLinear>(Weight(name), std::move(bias_O));
  return std::make_unique<LoraLinear>(Weight(name), std::move(bias_O), adapters->second);
}

LoraWeights Builder::AdapterOfAll(const std::string& name) const {
  const auto adapters = lora_.find(prefix_ + name);
  return adapters == lora_.end() ? LoraWeights() : adapters->second.front();
}

}  // namespace luthier
