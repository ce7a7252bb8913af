#include "lib/checkpoint/tensor_table.h"

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {

void TensorTable::AddLinear(const std::string& module, int layer, int64_t in, int64_t out, bool bias) {
  Add(module + ".weight", {out, in});
  if (bias) Add(module + ".bias", {out});
  linears_.push_back({module, layer, in, out});
}

LayerRows::LayerRows(TensorTable& table, const ModelConfig& config, int layer)
    : table_(table), config_(config), layer_(layer), prefix_(absl::StrCat("model.layers.", layer, ".")) {}

void LayerRows::Linear(absl::string_view name, int64_t in, int64_t out, bool bias) {
  table_.AddLinear(absl::StrCat(prefix_, name), layer_, in, out, bias);
}

void LayerRows::Norms(std::initializer_list<absl::string_view> names, int64_t size) {
  for (absl::string_view name : names) table_.Add(absl::StrCat(prefix_, name, ".weight"), {size});
}

void LayerRows::Attention(bool qkv_bias, bool o_bias) {
  Linear("self_attn.q_proj", config_.hidden_size, config_.q_size(), qkv_bias);
  Linear("self_attn.k_proj", config_.hidden_size, config_.kv_size(), qkv_bias);
  Linear("self_attn.v_proj", config_.hidden_size, config_.kv_size(), qkv_bias);
  Linear("self_attn.o_proj", config_.q_size(), config_.hidden_size, o_bias);
}

void LayerRows::GatedMlp(bool bias) {
  Linear("mlp.gate_proj", config_.hidden_size, config_.intermediate_size, bias);
  Linear("mlp.up_proj", config_.hidden_size, config_.intermediate_size, bias);
  Linear("mlp.down_proj", config_.intermediate_size, config_.hidden_size, bias);
}

TensorTable DecoderTable(const ModelConfig& config, void (*add_layer)(const ModelConfig&, int layer, LayerRows& rows)) {
  TensorTable table;
  table.Add(kEmbedding, {config.vocab_size, config.hidden_size});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    LayerRows rows(table, config, layer);
    add_layer(config, layer, rows);
  }
  table.Add("model.norm.weight", {config.hidden_size});
  if (!config.tie_word_embeddings) table.Add(kHead, {config.vocab_size, config.hidden_size});
  return table;
}

}  // namespace luthier
