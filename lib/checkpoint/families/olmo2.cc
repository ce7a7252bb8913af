// OLMo 2: norms stand after the blocks, and on the whole of queries and keys.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  config.rms_norm_eps = 1e-5;
  config.padding_token = 1;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.Norms({"self_attn.q_norm"}, config.q_size());
  rows.Norms({"self_attn.k_norm"}, config.kv_size());
  rows.Norms({"post_attention_layernorm", "post_feedforward_layernorm"}, config.hidden_size);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

Family Olmo2Family() { return {"olmo2", "Olmo2ForCausalLM", &Read, &AddLayer, "olmo2"}; }

}  // namespace luthier
