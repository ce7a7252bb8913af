// Mistral: Llama with a sliding window on every layer, or on none (from v0.2 on).
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 8;
  config.max_position_embeddings = 131'072;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  const std::optional<int64_t> window = fields.NullableSize("sliding_window", 4096);
  // transformers makes a Ministral of one with `layer_types`, whose layers slide where the list says so.
  ReadSlidingLayers(fields, config, window, [&](int64_t) { return window.has_value(); });
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Attention(/*qkv_bias=*/false, /*o_bias=*/false);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

Family MistralFamily() {
  return {"mistral", "MistralForCausalLM", &Read, &AddLayer, "llama", /*gguf_permutes_heads=*/true};
}

}  // namespace luthier
