// Gemma 2: norms before and after each block, soft-caps, every other layer slides.
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void Read(FieldReader& fields, ModelConfig& config) {
  config.max_position_embeddings = 8192;
  ReadGemmaDecoder(fields, config);
  config.attention_softcap = fields.NullablePositive("attn_logit_softcapping", 50).value_or(0);
  config.logit_softcap = fields.NullablePositive("final_logit_softcapping", 30).value_or(0);
  const std::optional<int64_t> window = fields.NullableSize("sliding_window", 4096);
  if (window) fields.Require("sliding_window_size", *window);  // the same once more, in the first published files
  ReadSlidingLayers(fields, config, window, [](int64_t layer) { return layer % 2 == 0; });
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"},
             config.hidden_size);
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

// Nobody reads `hidden_act`: the activation is `hidden_activation`.
Family Gemma2Family() {
  return {"gemma2",
          "Gemma2ForCausalLM",
          &Read,
          &AddLayer,
          "gemma2",
          /*gguf_permutes_heads=*/false,
          {"hidden_act"},
          /*gguf_has_no_head=*/true};
}

}  // namespace luthier
