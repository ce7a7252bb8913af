#include "worker/trainer/models/olmo2/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {
namespace {

// Each block sees the residual stream as it is; what it adds is normed.
class PostNormLayer {
 public:
  PostNormLayer(const Builder& build, const ModelConfig& config, int64_t layer)
      : attention_(build.Under("self_attn."), config, layer),
        attention_norm_(build, "post_attention_layernorm", config.rms_norm_eps),
        mlp_(build.Under("mlp."), config),
        mlp_norm_(build, "post_feedforward_layernorm", config.rms_norm_eps) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = x_TD + attention_norm_(attention_(x_TD, pass));
    return h_TD + mlp_norm_(mlp_(h_TD, pass));
  }

 private:
  SelfAttention<AllHeadsNorm> attention_;
  RmsNorm attention_norm_;
  GatedMlp mlp_;
  RmsNorm mlp_norm_;
};

}  // namespace

std::unique_ptr<DecoderModel> MakeOlmo2(const ModelConfig& config, const NamedTensors& weights,
                                        const LoraLayers& lora) {
  return std::make_unique<Decoder<PostNormLayer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
