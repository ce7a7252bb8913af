// From files to tensors and back.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/safetensors.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// The torch name of a stored number format, and back.
at::ScalarType ToScalarType(Dtype dtype);
Dtype ToDtype(at::ScalarType type);

// A tensor of its own memory, converted to `type`.
Tensor ToTensor(const TensorView& view, at::ScalarType type);

// A view of a contiguous CPU tensor for writing; borrows its memory.
TensorToWrite ToWrite(const std::string& name, const Tensor& tensor);

// Reads every tensor that the config asks for, converted to `type`. Errors: as CheckLlamaTensors and WeightFolder::Open.
absl::StatusOr<NamedTensors> LoadWeights(const std::string& folder, const ModelConfig& config, at::ScalarType type);

// Weights drawn from `seed`: normal(0, 0.02), norms 1, projections into the residual stream scaled by 1/sqrt(2·layers)
// (GPT-2, section 2.3).
NamedTensors RandomWeights(const ModelConfig& config, uint64_t seed);

}  // namespace luthier
