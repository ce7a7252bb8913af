// What the Gemma families share (arXiv:2408.00118): a layer that norms each block before and after, and a scale of
// embeddings.
#pragma once

#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/norm.h"
#include "worker/trainer/models/common/pass.h"

namespace luthier {

template <class Attention>
class GemmaLayer {
 public:
  GemmaLayer(const Builder& build, const ModelConfig& config, int64_t layer)
      : before_attention_(build, "input_layernorm", config.rms_norm_eps),
        attention_(build.Under("self_attn."), config, layer),
        after_attention_(build, "post_attention_layernorm", config.rms_norm_eps),
        before_mlp_(build, "pre_feedforward_layernorm", config.rms_norm_eps),
        mlp_(build.Under("mlp."), config),
        after_mlp_(build, "post_feedforward_layernorm", config.rms_norm_eps) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = x_TD + after_attention_(attention_(before_attention_(x_TD), pass));
    return h_TD + after_mlp_(mlp_(before_mlp_(h_TD), pass));
  }

 private:
  UnitOffsetRmsNorm before_attention_;
  Attention attention_;
  UnitOffsetRmsNorm after_attention_;
  UnitOffsetRmsNorm before_mlp_;
  GatedMlp mlp_;
  UnitOffsetRmsNorm after_mlp_;
};

// Gemma was trained with sqrt(D) rounded to the format of its weights.
inline ModelConfig WithRoundedEmbeddingScale(ModelConfig config, const NamedTensors& weights) {
  const at::ScalarType type = weights.at(kEmbedding).scalar_type();
  config.embedding_scale = at::scalar_tensor(config.embedding_scale, at::kDouble).to(type).item<double>();
  return config;
}

}  // namespace luthier
