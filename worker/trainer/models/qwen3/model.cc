#include "worker/trainer/models/qwen3/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/pre_norm_layer.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {

std::unique_ptr<DecoderModel> MakeQwen3(const ModelConfig& config, const NamedTensors& weights,
                                        const LoraLayers& lora) {
  using Layer = PreNormLayer<SelfAttention<PerHeadNorm<RmsNorm>>, GatedMlp>;
  return std::make_unique<Decoder<Layer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
