// Llama 2 and 3.x, SmolLM2 and everything else that calls itself llama.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  config.mlp_bias = fields.FlagOr("mlp_bias", false);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.GatedMlp(config.mlp_bias);
}

}  // namespace

Family LlamaFamily() {
  return {"llama", "LlamaForCausalLM", &Read, [](const ModelConfig& config) { return DecoderTable(config, &AddLayer); },
          "llama", /*gguf_permutes_heads=*/true};
}

}  // namespace luthier
