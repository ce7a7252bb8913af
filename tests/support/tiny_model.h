// A whole base model in milliseconds: the folder of text_fixture.h with weights of zeros. It answers nothing, but
// everything that looks at files, names and shapes takes it for a model.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/safetensors.h"
#include "tests/support/text_fixture.h"

namespace luthier {

inline absl::Status WriteTinyModel(const std::string& folder) {
  WriteTinyBase(folder);
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(folder);
  if (!config.ok()) return config.status();
  static const std::vector<std::byte> zeros(size_t{1} << 20);
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, shape] : CheckpointTensors(*config)) {
    tensors.push_back({name, Dtype::kF32, shape, {zeros.data(), 4 * static_cast<size_t>(NumElements(shape))}});
  }
  return WriteSafetensors(folder + "/model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace luthier
