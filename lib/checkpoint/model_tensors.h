// Which tensors a checkpoint must hold, by its config alone.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/checkpoint/tensor_table.h"

namespace luthier {

inline constexpr char kEmbeddingModule[] = "model.embed_tokens", kHeadModule[] = "lm_head";
inline constexpr char kEmbedding[] = "model.embed_tokens.weight", kHead[] = "lm_head.weight";

// Name → shape of every tensor that a checkpoint of this config holds. A tied head has no tensor of its own.
std::map<std::string, std::vector<int64_t>> CheckpointTensors(const ModelConfig& config);

// Every linear layer except the head that PEFT targets as a module, in forward order.
std::vector<LinearLayer> LinearLayers(const ModelConfig& config);

// What it targets as a parameter: the experts of each layer, their router, and the MLPs of such a model's other layers.
std::vector<LinearLayer> ParameterLayers(const ModelConfig& config);

// The head, which carries an adapter only where it is named. Its `layer` is -1.
LinearLayer HeadLayer(const ModelConfig& config);

// The embedding, as a linear layer whose input is 1 at the token's number and 0 elsewhere: V inputs, D outputs. Its
// weight is stored the other way round, [V, D]. It carries an adapter only where it is named. Its `layer` is -1.
LinearLayer EmbeddingLayer(const ModelConfig& config);
bool IsEmbedding(const LinearLayer& layer);

// The stored tensor of that name; null if there is none. A tied model's one matrix may be stored under the head's name.
const TensorView* FindStored(const ModelConfig& config, const std::map<std::string, TensorView>& stored,
                             const std::string& name);

// The linear layers, the head and the embedding.
std::vector<LinearLayer> ModuleLayers(const ModelConfig& config);

// The same and, last, the parameters.
std::vector<LinearLayer> AdaptableLayers(const ModelConfig& config);

// The last parts of the linear layers' names, each once: "down_proj", "gate_proj", …
std::vector<std::string> LinearLayerNames(const ModelConfig& config);

// Checkpoint names and shapes of the tensors that an adapter trains whole. A tied head counts as a module of its own
// here.
std::map<std::string, std::vector<int64_t>> SavedTensors(const AdapterConfig& adapter, const ModelConfig& config);

// Compares what a folder holds with what the config asks for; reports every missing, unexpected or misshapen tensor
// together. A stored `lm_head.weight` of a tied model and old `rotary_emb.inv_freq` buffers are no fault.
absl::Status CheckTensors(const ModelConfig& config, const std::map<std::string, TensorView>& stored);

}  // namespace luthier
