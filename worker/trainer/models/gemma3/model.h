// Gemma 3, text (arXiv:2503.19786): Gemma 2 with normed queries and keys instead of soft-caps, five sliding layers to a
// full one.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/gemma3.cc.
std::unique_ptr<DecoderModel> MakeGemma3(const ModelConfig& config, const NamedTensors& weights,
                                         const LoraLayers& lora);

}  // namespace luthier
