// Qwen3: Llama whose queries and keys are normed, head by head, before they are rotated.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 32;
  config.head_dim = 128;
  config.max_position_embeddings = 32'768;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  fields.Require("use_qk_norm", true);
  ReadQwenWindows(fields, config);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Norms({"self_attn.q_norm", "self_attn.k_norm"}, config.head_dim);
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

Family Qwen3Family() { return {"qwen3", "Qwen3ForCausalLM", &Read, &AddLayer, "qwen3"}; }

}  // namespace luthier
