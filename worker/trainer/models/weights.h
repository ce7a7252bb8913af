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

// Whether weights may be written to. Frozen ones need no memory of their own: where the file has their format, tensors
// are the mapped file itself, which several trainers on a node share. Writing to such a tensor ends the process, and so
// does a file that is cut short while it is in use.
enum class WeightUse { kFrozen, kTrained };

// Reads every tensor that the config asks for, converted to `type`; never more than one tensor is held twice.
// Errors: as CheckTensors and WeightFolder::Open; INVALID_ARGUMENT if a tied head is stored with other numbers than the
// embedding.
absl::StatusOr<NamedTensors> LoadWeights(const std::string& folder, const ModelConfig& config, at::ScalarType type,
                                         WeightUse use);

// Weights drawn from `seed`: normal(0, 0.02), norms 1, biases 0, projections into the residual stream scaled by
// 1/sqrt(2·layers) (GPT-2, section 2.3).
NamedTensors RandomWeights(const ModelConfig& config, uint64_t seed);

}  // namespace luthier
