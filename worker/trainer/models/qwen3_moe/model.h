// Qwen3-MoE (arXiv:2505.09388): Qwen3 whose MLPs are mixtures of experts.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/qwen3_moe.cc.
std::unique_ptr<DecoderModel> MakeQwen3Moe(const ModelConfig& config, const NamedTensors& weights,
                                           const LoraLayers& lora);

}  // namespace luthier
