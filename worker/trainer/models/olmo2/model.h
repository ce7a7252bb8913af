// OLMo 2 (arXiv:2501.00656): norms stand after the blocks, and on the whole of queries and keys.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/olmo2.cc.
std::unique_ptr<DecoderModel> MakeOlmo2(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora);

}  // namespace luthier
