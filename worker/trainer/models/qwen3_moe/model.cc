#include "worker/trainer/models/qwen3_moe/model.h"

#include <variant>

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/experts.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {
namespace {

// Qwen3's layer; its MLP is one MLP in some layers and a mixture of experts in the others.
class Qwen3MoeLayer {
 public:
  Qwen3MoeLayer(const Builder& build, const ModelConfig& config, int64_t layer)
      : attention_norm_(build, "input_layernorm", config.rms_norm_eps),
        attention_(build.Under("self_attn."), config, layer),
        mlp_norm_(build, "post_attention_layernorm", config.rms_norm_eps),
        mlp_(MakeMlp(build.Under("mlp."), config, layer)) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = x_TD + attention_(attention_norm_(x_TD), pass);
    return h_TD + std::visit([&](const auto& mlp) { return mlp(mlp_norm_(h_TD), pass); }, mlp_);
  }

 private:
  using Mlp = std::variant<GatedMlp, Experts>;

  static Mlp MakeMlp(const Builder& build, const ModelConfig& config, int64_t layer) {
    if (config.layers[static_cast<size_t>(layer)].experts) return Experts(build, config);
    return GatedMlp(build, config);
  }

  RmsNorm attention_norm_;
  SelfAttention<PerHeadNorm<RmsNorm>> attention_;
  RmsNorm mlp_norm_;
  Mlp mlp_;
};

}  // namespace

std::unique_ptr<DecoderModel> MakeQwen3Moe(const ModelConfig& config, const NamedTensors& weights,
                                           const LoraLayers& lora) {
  return std::make_unique<Decoder<Qwen3MoeLayer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
