#include "worker/trainer/models/qwen2/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/pre_norm_layer.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {

// Biases come with the weights.
std::unique_ptr<DecoderModel> MakeQwen2(const ModelConfig& config, const NamedTensors& weights,
                                        const LoraLayers& lora) {
  using Layer = PreNormLayer<SelfAttention<NoHeadNorm>, GatedMlp>;
  return std::make_unique<Decoder<Layer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
