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

}  // namespace

Family LlamaFamily() {
  return {"llama", "LlamaForCausalLM", &Read, &AddLlamaLayer, "llama", /*gguf_permutes_heads=*/true};
}

}  // namespace luthier
