// Mistral (arXiv:2310.06825): Llama whose layers may look back no farther than a window.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/mistral.cc.
std::unique_ptr<DecoderModel> MakeMistral(const ModelConfig& config, const NamedTensors& weights,
                                          const LoraLayers& lora);

}  // namespace luthier
