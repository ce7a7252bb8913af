// The Llama decoder (arXiv:2302.13971, 2407.21783): pre-norm, rotary grouped-query attention, SwiGLU.
#pragma once

#include <memory>
#include <vector>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/llama_tensors.h.
std::unique_ptr<DecoderModel> MakeLlama(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
