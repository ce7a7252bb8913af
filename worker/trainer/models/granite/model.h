// Granite 3 (arXiv:2405.04324): Llama with multipliers on embeddings, scores, blocks and logits.
#pragma once

#include <memory>

#include "worker/trainer/models/model.h"

namespace luthier {

// `weights` has been checked against lib/checkpoint/families/granite.cc.
std::unique_ptr<DecoderModel> MakeGranite(const ModelConfig& config, const NamedTensors& weights,
                                          const LoraLayers& lora);

}  // namespace luthier
