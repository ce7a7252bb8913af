// Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 32;
  config.max_position_embeddings = 32'768;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  ReadQwenWindows(fields, config);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Attention(/*qkv_bias=*/true, /*o_bias=*/false);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

Family Qwen2Family() { return {"qwen2", "Qwen2ForCausalLM", &Read, &AddLayer, "qwen2"}; }

}  // namespace luthier
