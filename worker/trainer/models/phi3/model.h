// Phi-3 and Phi-4 (arXiv:2404.14219, 2412.08905): Llama with fused projections and heads that may be rotated in part.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/phi3.cc.
std::unique_ptr<DecoderModel> MakePhi3(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
