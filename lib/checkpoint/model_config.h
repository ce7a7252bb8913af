// A model's architecture, read from the config.json of a Hugging Face folder.
// Both generations are read: transformers 4 (`torch_dtype`, `rope_theta`, `rope_scaling`) and 5 (`dtype`,
// `rope_parameters`).
//
// Values are here and structure is not: how many heads, how wide a window, which multiplier. Where the norms of a layer
// stand or which projections are fused is what a family is; it is written once in worker/trainer/models/<family> and
// once, as a table of tensors, in lib/checkpoint/families/<family>.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Rotary position embedding, with every default settled. Source: transformers modeling_rope_utils.py.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kDynamic, kYarn, kLongrope, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;         // elements of a head that are rotated, from the first
  double attention_factor = 1.0;  // on cosines and sines: kYarn, kLongrope
  double factor = 1.0;            // all but kDefault
  double low_freq_factor = 1.0;   // kLlama3
  double high_freq_factor = 4.0;  // kLlama3
  double beta_fast = 32.0;        // kYarn
  double beta_slow = 1.0;         // kYarn
  bool truncate = true;           // kYarn: whole pairs begin and end the ramp
  // Longest document that needs no stretching: kYarn, kLongrope, kLlama3 (pre-training), kDynamic
  // (max_position_embeddings).
  int64_t original_max_position_embeddings = 0;
  std::vector<double> short_factors;  // kLongrope: up to that length, one a pair
  std::vector<double> long_factors;   // kLongrope: beyond it
};

// What differs from layer to layer.
struct LayerConfig {
  std::optional<int64_t> window;   // a token sees itself and the window - 1 tokens before it; absent: all of them
  std::optional<size_t> rope = 0;  // which of ModelConfig::ropes; absent: positions are not encoded
  bool experts = false;            // a mixture of experts instead of one MLP
};

// A mixture of experts (arXiv:1701.06538): every token goes through `per_token` of `count` small MLPs.
struct ExpertsConfig {
  int64_t count = 0;
  int64_t per_token = 0;
  int64_t intermediate_size = 0;
  bool normalize = false;  // the chosen experts' probabilities are divided by their sum
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
  double norm_offset = 0;  // what is added to stored norm weights; Gemma: 1
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // on the projections of attention, as far as the family has biases
  bool mlp_bias = false;
  std::string activation = "silu";  // of the gate: silu, gelu_pytorch_tanh
  std::vector<LayerConfig> layers;  // num_layers of them
  std::vector<RopeConfig> ropes;

  double attention_scale = 0;    // on q·k; most families: 1/sqrt(head_dim)
  double attention_softcap = 0;  // scores become cap · tanh(score / cap); 0: they stay
  double attention_dropout = 0;  // in training
  double embedding_scale = 1;
  // The token whose row of the embedding gets no gradient, as of torch.nn.Embedding's padding_idx. It is a token like
  // any other otherwise, and a tied head learns it.
  std::optional<int64_t> padding_token;
  double residual_scale = 1;  // on what a block adds to the residual stream
  double logit_scale = 1;
  double logit_softcap = 0;  // as attention_softcap, on the final logits
  std::optional<ExpertsConfig> experts;

  std::string dtype = "float32";  // of the stored weights, as config.json names it

  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

inline constexpr const char* kConfigFile = "config.json";

// Reads a config.json. A field that changes the mathematics and is not implemented is refused by name, never ignored.
// Errors: INVALID_ARGUMENT listing every violation as "config.json: field: value: remedy".
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& json);

// Reads `folder`/config.json as it stands. Errors: NOT_FOUND; INVALID_ARGUMENT if it is no JSON.
absl::StatusOr<nlohmann::json> ReadConfigJson(const std::string& folder);

// Reads `folder`/config.json. Errors: NOT_FOUND; as ParseModelConfig.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder);

}  // namespace luthier
