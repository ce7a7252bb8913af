// A model's architecture, read from the config.json of a Hugging Face folder.
// Both generations are read: transformers 4 (`torch_dtype`, `rope_theta`, `rope_scaling`) and 5 (`dtype`, `rope_parameters`).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Rotary position embedding. Source: transformers modeling_rope_utils.py.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;  // kLinear, kLlama3
  double low_freq_factor = 1.0;  // kLlama3
  double high_freq_factor = 4.0;  // kLlama3
  double original_max_position_embeddings = 8192;  // kLlama3
};

// What the forward pass needs to know. Sizes are positive and consistent once parsed.
struct ModelConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  RopeConfig rope;
  std::string dtype = "float32";  // of the stored weights, as config.json names it
  int64_t bos_token_id = -1;  // -1: none
  std::vector<int64_t> eos_token_ids;

  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// Reads a config.json. A field that changes the mathematics and is not implemented is refused by name, never ignored.
// Errors: INVALID_ARGUMENT listing every violation as "config.json: field: value: remedy".
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& json);

// Reads `folder`/config.json as it stands. Errors: NOT_FOUND; INVALID_ARGUMENT if it is no JSON.
absl::StatusOr<nlohmann::json> ReadConfigJson(const std::string& folder);

// The config.json of a checkpoint whose weights were changed and stored as `dtype` ("bfloat16"): all fields as they were
// but that one, under the name that the generation of the file uses.
nlohmann::json WithDtype(nlohmann::json config, const std::string& dtype);

// Reads `folder`/config.json. Errors: NOT_FOUND; as ParseModelConfig.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder);

}  // namespace luthier
