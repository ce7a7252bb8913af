// Granite 3.x: Llama with a multiplier on embeddings, on attention scores, on what a block adds, and a divisor of the
// logits.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  config.mlp_bias = fields.FlagOr("mlp_bias", false);
  config.embedding_scale = fields.PositiveOr("embedding_multiplier", 1);
  config.attention_scale = fields.PositiveOr("attention_multiplier", 1);
  config.residual_scale = fields.PositiveOr("residual_multiplier", 1);
  config.logit_scale = 1 / fields.PositiveOr("logits_scaling", 1);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

}  // namespace

Family GraniteFamily() {
  return {"granite", "GraniteForCausalLM", &Read, &AddLlamaLayer, "granite", /*gguf_permutes_heads=*/true};
}

}  // namespace luthier
