// The tensors of a Llama checkpoint: the one place that knows their names and shapes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/safetensors.h"

namespace luthier {

// Name → shape of every tensor that a checkpoint of this config holds. A tied head has no tensor of its own.
std::map<std::string, std::vector<int64_t>> LlamaTensors(const ModelConfig& config);

// A linear layer that can carry an adapter.
struct LinearLayer {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int layer;
  int64_t in;
  int64_t out;
};

// Every linear layer except the head, in forward order.
std::vector<LinearLayer> LlamaLinearLayers(const ModelConfig& config);

// Compares what a folder holds with what the config asks for; reports every missing, unexpected or misshapen tensor together.
// A stored `lm_head.weight` of a tied model and old `rotary_emb.inv_freq` buffers are no fault.
absl::Status CheckLlamaTensors(const ModelConfig& config, const std::map<std::string, TensorView>& stored);

}  // namespace luthier
