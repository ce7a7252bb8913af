#include "worker/trainer/models/gemma3/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/gemma_layer.h"
#include "worker/trainer/models/common/self_attention.h"

namespace luthier {

std::unique_ptr<DecoderModel> MakeGemma3(const ModelConfig& config, const NamedTensors& weights,
                                         const LoraLayers& lora) {
  using Layer = GemmaLayer<SelfAttention<PerHeadNorm<UnitOffsetRmsNorm>>>;
  return std::make_unique<Decoder<Layer, UnitOffsetRmsNorm>>(WithRoundedEmbeddingScale(config, weights), weights, lora);
}

}  // namespace luthier
