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

// A layer of its own whose weight PEFT targets.
void AddWeight(const std::string& module, int layer, int64_t in, int64_t out, TensorTable& table) {
  table.Add(module + ".weight", {out, in});
  table.AddParameter({module, layer, in, out, module + ".weight"});
}

// The router and the experts. In transformers 5 all experts of a layer are two parameters, of which the first has gate
// above up.
void AddExperts(const ModelConfig& config, int layer, LayerRows& rows) {
  const int64_t hidden = config.hidden_size, width = config.experts->intermediate_size, count = config.experts->count;
  TensorTable& table = rows.table();
  AddWeight(rows.prefix() + "mlp.gate", layer, hidden, count, table);
  const std::string experts = rows.prefix() + "mlp.experts.";
  for (int64_t expert = 0; expert < count; ++expert) {
    const std::string prefix = absl::StrCat(experts, expert, ".");
    table.Add(prefix + "gate_proj.weight", {width, hidden});
    table.Add(prefix + "up_proj.weight", {width, hidden});
    table.Add(prefix + "down_proj.weight", {hidden, width});
  }
  const std::string gate_up = experts + "gate_up_proj", down = experts + "down_proj";
  table.AddParameter({gate_up, layer, hidden, 2 * width, gate_up, count});
  table.AddParameter({down, layer, width, hidden, down, count});
}

// The MLP of a layer without experts. As module names, PEFT takes gate_proj, up_proj and down_proj for those of the
// experts, here too.
void AddDenseMlp(const ModelConfig& config, int layer, LayerRows& rows) {
  const int64_t hidden = config.hidden_size, width = config.intermediate_size;
  AddWeight(rows.prefix() + "mlp.gate_proj", layer, hidden, width, rows.table());
  AddWeight(rows.prefix() + "mlp.up_proj", layer, hidden, width, rows.table());
  AddWeight(rows.prefix() + "mlp.down_proj", layer, width, hidden, rows.table());
}

void AddLayer(const ModelConfig& config, int layer, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Norms({"self_attn.q_norm", "self_attn.k_norm"}, config.head_dim);
  rows.Attention(config.attention_bias, config.attention_bias);
  if (config.layers[static_cast<size_t>(layer)].experts) {
    AddExperts(config, layer, rows);
  } else {
    AddDenseMlp(config, layer, rows);
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
