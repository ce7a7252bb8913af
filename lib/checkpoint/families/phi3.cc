// Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama with fused projections, of whose heads only a part may be rotated.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

// What transformers takes where `original_max_position_embeddings` is missing.
constexpr int64_t kOriginalLength = 4096;

void Read(FieldReader& fields, ModelConfig& config) {
  config.rms_norm_eps = 1e-5;
  config.max_position_embeddings = 4096;
  config.padding_token = 32'000;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  fields.Require("resid_pdrop", 0.0);
  fields.Require("embd_pdrop", 0.0);
  const std::optional<int64_t> window = fields.OptionalSize("sliding_window");
  for (LayerConfig& layer : config.layers) layer.window = window;
  RopeConfig rope = ReadRope(fields, config, 10'000, kOriginalLength);
  if (rope.type != RopeConfig::Type::kDefault && rope.type != RopeConfig::Type::kLongrope) {
    fields.Violation("rope_scaling", "the type is not supported for model_type phi3; supported: default, longrope");
  }
  config.ropes = {rope};
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Linear("self_attn.qkv_proj", config.hidden_size, config.q_size() + 2 * config.kv_size());
  rows.Linear("self_attn.o_proj", config.q_size(), config.hidden_size);
  rows.Linear("mlp.gate_up_proj", config.hidden_size, 2 * config.intermediate_size);
  rows.Linear("mlp.down_proj", config.intermediate_size, config.hidden_size);
}

}  // namespace

Family Phi3Family() { return {"phi3", "Phi3ForCausalLM", &Read, &AddLayer, "phi3"}; }

}  // namespace luthier
