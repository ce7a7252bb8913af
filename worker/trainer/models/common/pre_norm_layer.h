// The layer of most families: each block sees a normed input and adds to the residual stream.
#pragma once

#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/norm.h"
#include "worker/trainer/models/common/pass.h"

namespace luthier {

template <class Attention, class Mlp>
class PreNormLayer {
 public:
  PreNormLayer(const Builder& build, const ModelConfig& config, int64_t layer)
      : attention_norm_(build, "input_layernorm", config.rms_norm_eps),
        attention_(build.Under("self_attn."), config, layer),
        mlp_norm_(build, "post_attention_layernorm", config.rms_norm_eps),
        mlp_(build.Under("mlp."), config) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = x_TD + attention_(attention_norm_(x_TD), pass);
    return h_TD + mlp_(mlp_norm_(h_TD), pass);
  }

 private:
  RmsNorm attention_norm_;
  Attention attention_;
  RmsNorm mlp_norm_;
  Mlp mlp_;
};

}  // namespace luthier
