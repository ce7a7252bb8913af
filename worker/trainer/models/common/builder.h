// Hands out the tensors and linear layers under one prefix of the checkpoint.
#pragma once

#include <memory>
#include <string>

#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/models/model.h"

namespace luthier {

class Builder {
 public:
  // Weights and adapters are borrowed until the model is built.
  Builder(const NamedTensors& weights, const LoraLayers& lora, std::string prefix = "")
      : weights_(weights), lora_(lora), prefix_(std::move(prefix)) {}

  Builder Under(const std::string& prefix) const { return {weights_, lora_, prefix_ + prefix}; }

  const Tensor& Weight(const std::string& name) const { return weights_.at(prefix_ + name + ".weight"); }

  // Plain or with adapters, with a bias if the checkpoint has one.
  std::unique_ptr<Linear> MakeLinear(const std::string& name) const;

  // The one adapter of what all experts have by that name; undefined if there is none.
  LoraWeights AdapterOfAll(const std::string& name) const;

 private:
  const NamedTensors& weights_;
  const LoraLayers& lora_;
  std::string prefix_;
};

}  // namespace luthier
