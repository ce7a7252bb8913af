// An adapter: the A and B matrices of every layer that it targets, by construction beside frozen weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/llama_tensors.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// Tensors by PEFT's names: "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" [R, I], "….lora_B.weight" [O, R].
struct Adapter {
  AdapterConfig config;
  NamedTensors tensors;
};

// A fresh adapter as PEFT initialises it: A uniform in ±1/sqrt(in) (kaiming with a = sqrt 5), B zero.
// Errors: INVALID_ARGUMENT if `config` targets no layer.
absl::StatusOr<Adapter> MakeAdapter(const AdapterConfig& config, const std::vector<LinearLayer>& linears, uint64_t seed);

// Reads a PEFT folder in fp32. Errors: INVALID_ARGUMENT listing every missing, unexpected or misshapen tensor.
absl::StatusOr<Adapter> ReadAdapter(const std::string& folder, const std::vector<LinearLayer>& linears);

// Writes adapter_config.json and adapter_model.safetensors (fp32, contiguous) durably into an existing folder.
absl::Status WriteAdapter(const Adapter& adapter, const std::string& folder);

// The layers of one or more adapters of the same base, for MakeModel. Tensors are shared, not copied.
LoraLayers CollectLayers(const std::vector<const Adapter*>& adapters, const std::vector<LinearLayer>& linears);

// W + scale · B·A for every targeted layer, computed in fp32; the other tensors are shared with `base`.
NamedTensors MergeAdapter(const NamedTensors& base, const Adapter& adapter, const std::vector<LinearLayer>& linears);

}  // namespace luthier
