// Whether the names that a job gives for its adapter exist in a model.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/tensor_table.h"

namespace luthier {

// The linear layers that get an adapter, in forward order.
std::vector<LinearLayer> TargetedLayers(const AdapterConfig& adapter, const ModelConfig& model);

// A name, pattern or number that matches nothing is a mistake: less would be trained than was asked for. Errors:
// INVALID_ARGUMENT naming the field of the job's `lora` block, the value and what exists.
absl::Status CheckAdapterNames(const AdapterConfig& adapter, const ModelConfig& model);

// The same for `training.freeze`, which must leave something to train.
absl::Status CheckFrozenNames(const std::vector<std::string>& patterns, const ModelConfig& model);

}  // namespace luthier
