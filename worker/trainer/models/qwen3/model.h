// Qwen3 (arXiv:2505.09388): Llama whose queries and keys are normed, head by head.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/qwen3.cc.
std::unique_ptr<DecoderModel> MakeQwen3(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
