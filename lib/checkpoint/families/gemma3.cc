// Gemma 3 (text): Gemma 2 without soft-caps on attention, with normed queries and keys, and with one frequency base for
// the sliding layers and another for the full ones.
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

constexpr double kGlobalTheta = 1'000'000, kLocalTheta = 10'000;
constexpr size_t kGlobal = 0, kLocal = 1;

// `type` in place of `rope_type` stretched the full layers in transformers 4, and does nothing in 5.
void RefuseOldTypeOfRope(FieldReader& fields, const nlohmann::json& scaling) {
  if (!scaling.is_object() || !scaling.contains("type") || scaling["type"] == "default") return;
  if (scaling.contains("rope_type")) return;
  fields.Violation("rope_scaling.type",
                   absl::StrCat(scaling["type"].dump(),
                                " is read by some versions of transformers and ignored by others; call it rope_type if "
                                "the model was trained with it, or else remove rope_scaling"));
}

// Generation 4 has `rope_theta` and `rope_scaling` for the full layers and `rope_local_base_freq` for the sliding ones;
// generation 5 has a block for each.
void ReadRopes(FieldReader& fields, ModelConfig& config) {
  static const nlohmann::json plain = nlohmann::json::object();
  const nlohmann::json& both = fields.Raw("rope_parameters");
  const auto block = [&](const char* kind) -> const nlohmann::json& {
    return both.is_object() && both.contains(kind) && both[kind].is_object() ? both[kind] : plain;
  };
  if (both.is_object()) {
    for (const auto& [kind, ignored] : both.items()) {
      if (kind != "full_attention" && kind != "sliding_attention") {
        fields.Violation(absl::StrCat("rope_parameters.", kind),
                         "is not supported; supported: full_attention, sliding_attention");
      }
    }
  }
  const nlohmann::json& scaling = fields.Raw("rope_scaling");
  for (const auto& [name, given] : {std::pair("rope_scaling", &scaling), std::pair("rope_parameters", &both)}) {
    if (!given->is_null() && !given->is_object())
      fields.Violation(name, absl::StrCat(given->dump(), " is not an object"));
  }
  if (!scaling.empty() && !both.empty()) {
    fields.Violation("rope_scaling", "is given beside rope_parameters, and only one of them can count; remove one");
  }
  RefuseOldTypeOfRope(fields, scaling);
  const double global = fields.PositiveOr("rope_theta", kGlobalTheta),
               local = fields.PositiveOr("rope_local_base_freq", kLocalTheta);
  config.ropes.push_back(scaling.is_object() ? ReadRopeBlock(scaling, "rope_scaling", fields, config, global)
                                             : ReadRopeBlock(block("full_attention"), "rope_parameters.full_attention",
                                                             fields, config, global));
  config.ropes.push_back(
      ReadRopeBlock(block("sliding_attention"), "rope_parameters.sliding_attention", fields, config, local));
  for (LayerConfig& layer : config.layers) layer.rope = layer.window ? kLocal : kGlobal;
}

void Read(FieldReader& fields, ModelConfig& config) {
  config.max_position_embeddings = 131'072;
  ReadGemmaDecoder(fields, config);
  config.logit_softcap = fields.OptionalPositive("final_logit_softcapping").value_or(0);
  const int64_t pattern = fields.SizeOr("sliding_window_pattern", 6);
  // transformers writes it with an underscore, too, but beside `layer_types`, and does not read it.
  const int64_t written = fields.SizeOr("_sliding_window_pattern", pattern);
  if (written != pattern && !fields.Has("layer_types")) {
    fields.Violation("_sliding_window_pattern", absl::StrCat(written, " is not read by transformers, which takes ",
                                                             pattern, "; give layer_types, or sliding_window_pattern"));
  }
  ReadSlidingLayers(fields, config, fields.NullableSize("sliding_window", 4096),
                    [&](int64_t layer) { return (layer + 1) % pattern != 0; });
  ReadRopes(fields, config);
  RequireWholeHeads(config, fields);
}

void AddLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"},
             config.hidden_size);
  rows.Norms({"self_attn.q_norm", "self_attn.k_norm"}, config.head_dim);
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.GatedMlp(/*bias=*/false);
}

}  // namespace

// Nobody reads `hidden_act`: the activation is `hidden_activation`.
Family Gemma3Family() {
  return {"gemma3_text", "Gemma3ForCausalLM",           &Read,         &AddLayer,
          "gemma3",      /*gguf_permutes_heads=*/false, {"hidden_act"}};
}

}  // namespace luthier
