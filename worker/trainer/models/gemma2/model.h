// Gemma 2 (arXiv:2408.00118): norms around each block, soft-caps, every other layer slides.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/gemma2.cc.
std::unique_ptr<DecoderModel> MakeGemma2(const ModelConfig& config, const NamedTensors& weights,
                                         const LoraLayers& lora);

}  // namespace luthier
