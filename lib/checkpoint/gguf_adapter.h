// What of an adapter llama.cpp's format has a place for.
#pragma once

#include "absl/status/status.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"

namespace luthier {

// Errors: INVALID_ARGUMENT naming the field of adapter_config.json and the remedy, for DoRA, whole modules, and an
// adapter on a head or an embedding that are tied, as llama.cpp's Gemma 2 has them in any case.
absl::Status CheckFitsGgufAdapter(const AdapterConfig& adapter, const ModelConfig& model);

}  // namespace luthier
