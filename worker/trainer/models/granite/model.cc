#include "worker/trainer/models/granite/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {
namespace {

// Llama's layer, but a block adds only a part of what it computes.
class GraniteLayer {
 public:
  GraniteLayer(const Builder& build, const ModelConfig& config, int64_t layer)
      : attention_norm_(build, "input_layernorm", config.rms_norm_eps),
        attention_(build.Under("self_attn."), config, layer),
        mlp_norm_(build, "post_attention_layernorm", config.rms_norm_eps),
        mlp_(build.Under("mlp."), config),
        residual_scale_(config.residual_scale) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = at::add(x_TD, attention_(attention_norm_(x_TD), pass), residual_scale_);
    return at::add(h_TD, mlp_(mlp_norm_(h_TD), pass), residual_scale_);
  }

 private:
  RmsNorm attention_norm_;
  SelfAttention<NoHeadNorm> attention_;
  RmsNorm mlp_norm_;
  GatedMlp mlp_;
  double residual_scale_;
};

}  // namespace

std::unique_ptr<DecoderModel> MakeGranite(const ModelConfig& config, const NamedTensors& weights,
                                          const LoraLayers& lora) {
  return std::make_unique<Decoder<GraniteLayer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
