#include "worker/trainer/models/smollm3/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/pre_norm_layer.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {

// Which layers rotate comes with the config.
std::unique_ptr<DecoderModel> MakeSmolLm3(const ModelConfig& config, const NamedTensors& weights,
                                          const LoraLayers& lora) {
  using Layer = PreNormLayer<SelfAttention<NoHeadNorm>, GatedMlp>;
  return std::make_unique<Decoder<Layer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
