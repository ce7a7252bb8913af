// Llama 2 and 3 (arXiv:2307.09288, 2407.21783): pre-norm, rotary grouped-query attention, gated MLP.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/llama.cc.
std::unique_ptr<DecoderModel> MakeLlama(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
