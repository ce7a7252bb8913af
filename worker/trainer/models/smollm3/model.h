// SmolLM3: Llama in which every fourth layer does not encode positions (arXiv:2501.18795).
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/smollm3.cc.
std::unique_ptr<DecoderModel> MakeSmolLm3(const ModelConfig& config, const NamedTensors& weights,
                                          const LoraLayers& lora);

}  // namespace luthier
