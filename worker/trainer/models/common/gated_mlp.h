// The MLP of every family: down(activation(gate(x)) · up(x)) (arXiv:2002.05202).
#pragma once

#include <string>

#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/pass.h"

namespace luthier {

// activation(gate_TF) · up_TF.
using GatedUnit = Tensor (*)(const Tensor& gate_TF, const Tensor& up_TF);

// `activation` is one that lib/checkpoint lets through: silu or gelu_pytorch_tanh.
inline GatedUnit MakeGatedUnit(const std::string& activation) {
  return activation == "silu" ? &ops::SwiGlu : &ops::GeGlu;
}

class GatedMlp {
 public:
  GatedMlp(const Builder& build, const ModelConfig& config)
      : gate_proj_(build.MakeLinear("gate_proj")),
        up_proj_(build.MakeLinear("up_proj")),
        down_proj_(build.MakeLinear("down_proj")),
        gated_(MakeGatedUnit(config.activation)) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const std::vector<Tensor> gate_up = Together(x_TD, pass.slices, {gate_proj_.get(), up_proj_.get()});
    return (*down_proj_)(gated_(gate_up[0], gate_up[1]), pass.slices);
  }

 private:
  std::unique_ptr<Linear> gate_proj_, up_proj_, down_proj_;
  GatedUnit gated_;
};

}  // namespace luthier
