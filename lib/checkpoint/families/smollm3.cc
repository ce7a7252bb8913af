// SmolLM3: Llama in which every fourth layer does not encode positions.
#include "absl/strings/str_cat.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

// `no_rope_layers` says 1 where a layer rotates, 0 where it does not.
void ReadRotatingLayers(FieldReader& fields, ModelConfig& config) {
  const nlohmann::json& rotates = fields.Raw("no_rope_layers");
  const int64_t interval = fields.SizeOr("no_rope_layer_interval", 4);
  if (!rotates.is_null() && (!rotates.is_array() || rotates.size() < config.layers.size())) {
    fields.Violation("no_rope_layers", absl::StrCat(rotates.dump(), " is not a list with one number a layer"));
    return;
  }
  for (const nlohmann::json& rotated : rotates) {
    if (rotated == 0 || rotated == 1) continue;
    fields.Violation("no_rope_layers", absl::StrCat(rotated.dump(), " is neither 0 nor 1"));
    return;
  }
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const bool plain = rotates.is_null() ? (static_cast<int64_t>(layer) + 1) % interval == 0 : rotates[layer] == 0;
    if (plain) config.layers[layer].rope.reset();
  }
}

void Read(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 4;
  config.tie_word_embeddings = true;
  config.max_position_embeddings = 32'768;
  config.padding_token = 128'004;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  config.mlp_bias = fields.FlagOr("mlp_bias", false);
  ReadRotatingLayers(fields, config);
  std::optional<int64_t> window = fields.OptionalSize("sliding_window");
  if (!fields.FlagOr("use_sliding_window", false)) window.reset();
  ReadSlidingLayers(fields, config, window,
                    [&](int64_t layer) { return window && !config.layers[static_cast<size_t>(layer)].rope; });
  config.ropes = {ReadRope(fields, config, 2'000'000)};
  RequireWholeHeads(config, fields);
}

}  // namespace

Family SmolLm3Family() {
  return {"smollm3",
          "SmolLM3ForCausalLM",
          &Read,
          &AddLlamaLayer,
          "smollm3",
          /*gguf_permutes_heads=*/true,
          {"max_window_layers"}};
}

}  // namespace luthier
