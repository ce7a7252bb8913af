// Qwen2 and Qwen2.5 (arXiv:2407.10671, 2412.15115): Llama with biases on queries, keys and values.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/qwen2.cc.
std::unique_ptr<DecoderModel> MakeQwen2(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
