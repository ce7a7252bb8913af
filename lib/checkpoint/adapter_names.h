// Whether the names that a job gives for its adapter exist in a model.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/tensor_table.h"

namespace luthier {

// The layers that get an adapter, in forward order; those that are targeted as parameters come last.
std::vector<LinearLayer> TargetedLayers(const AdapterConfig& adapter, const ModelConfig& model);

// The module under which PEFT stores what it trains of a targeted layer: the layer itself. All experts of a layer are
// one module, which PEFT wraps for each parameter anew: what was wrapped first, gate_up_proj, then lies deeper.
std::string StoredUnder(const AdapterConfig& adapter, const LinearLayer& targeted);

// A name, pattern or number that matches nothing is a mistake: less would be trained than was asked for. Errors:
// INVALID_ARGUMENT naming the field of the job's `lora` block, the value and what exists.
absl::Status CheckAdapterNames(const AdapterConfig& adapter, const ModelConfig& model);

// The same for `training.freeze`, which must leave something to train.
absl::Status CheckFrozenNames(const std::vector<std::string>& patterns, const ModelConfig& model);

}  // namespace luthier
