// Qwen3-MoE: Qwen3 whose MLP is a mixture of experts in most layers.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/rope_config.h"

namespace luthier {
namespace {

void ReadExperts(FieldReader& fields, ModelConfig& config) {
  ExpertsConfig experts;
  experts.count = fields.SizeOr("num_experts", fields.SizeOr("num_local_experts", 128));
  experts.per_token = fields.SizeOr("num_experts_per_tok", 8);
  experts.intermediate_size = fields.SizeOr("moe_intermediate_size", 768);
  experts.normalize = fields.FlagOr("norm_topk_prob", false);
  if (experts.per_token > experts.count) {
    fields.Violation("num_experts_per_tok",
                     absl::StrCat(experts.per_token, " exceeds the number of experts ", experts.count));
  }
  // A table of all tensors is built from it: ten times the largest published model.
  constexpr int64_t kMaxExperts = 200'000;
  if (experts.count * config.num_layers > kMaxExperts) {
    fields.Violation("num_experts", absl::StrCat(experts.count, " in each of ", config.num_layers,
                                                 " layers is out of range; must be at most ", kMaxExperts, " in all"));
    experts.count = 1;
  }
  // Would add the router's balance to the loss.
  fields.Require("output_router_logits", false);
  config.experts = experts;

  const int64_t every = fields.SizeOr("decoder_sparse_step", 1);
  const nlohmann::json& dense = fields.Raw("mlp_only_layers");
  const bool numbers = dense.is_array() && std::all_of(dense.begin(), dense.end(), [](const nlohmann::json& layer) {
                         return layer.is_number_integer();
                       });
  if (!dense.is_null() && !numbers)
    fields.Violation("mlp_only_layers", absl::StrCat(dense.dump(), " is not a list of layer numbers"));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool listed = dense.is_array() && std::find(dense.begin(), dense.end(), layer) != dense.end();
    config.layers[static_cast<size_t>(layer)].experts = !listed && (layer + 1) % every == 0;
  }
}

void Read(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 4;
  config.max_position_embeddings = 32'768;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_act", "silu");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  fields.Require("use_qk_norm", true);
  const std::optional<int64_t> window = fields.NullableSize("sliding_window", 4096);
  if (fields.FlagOr("use_sliding_window", false)) {
    for (LayerConfig& layer : config.layers) layer.window = window;
  }
  ReadExperts(fields, config);
  config.ropes = {ReadRope(fields, config, 10'000)};
  RequireWholeHeads(config, fields);
}

void AddExperts(const ModelConfig& config, LayerRows& rows) {
  const int64_t width = config.experts->intermediate_size;
  TensorTable& table = rows.table();
  table.Add(rows.prefix() + "mlp.gate.weight", {config.experts->count, config.hidden_size});
  for (int64_t expert = 0; expert < config.experts->count; ++expert) {
    const std::string prefix = absl::StrCat(rows.prefix(), "mlp.experts.", expert, ".");
    table.Add(prefix + "gate_proj.weight", {width, config.hidden_size});
    table.Add(prefix + "up_proj.weight", {width, config.hidden_size});
    table.Add(prefix + "down_proj.weight", {config.hidden_size, width});
  }
}

void AddLayer(const ModelConfig& config, int layer, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Norms({"self_attn.q_norm", "self_attn.k_norm"}, config.head_dim);
  rows.Attention(config.attention_bias, config.attention_bias);
  if (config.layers[static_cast<size_t>(layer)].experts) {
    AddExperts(config, rows);
  } else {
    rows.GatedMlp(/*bias=*/false);
  }
}

}  // namespace

// The first of these would matter with `output_router_logits`; the second chooses layers in Qwen3 without experts only.
Family Qwen3MoeFamily() {
  return {"qwen3_moe",
          "Qwen3MoeForCausalLM",
          &Read,
          &AddLayer,
          "qwen3moe",
          /*gguf_permutes_heads=*/false,
          {"router_aux_loss_coef", "max_window_layers"}};
}

}  // namespace luthier
