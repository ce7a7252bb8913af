// The tensors of a checkpoint as a table, and the pieces that families build it from.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "lib/checkpoint/model_config.h"

namespace luthier {

// A linear layer that can carry an adapter.
struct LinearLayer {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int layer;
  int64_t in;
  int64_t out;
};

// Name → shape of every tensor of a checkpoint, and which of them are weights of linear layers.
class TensorTable {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape) { tensors_[name] = std::move(shape); }
  // `module`.weight [out, in] and, with `bias`, `module`.bias [out]; a layer that can carry an adapter.
  void AddLinear(const std::string& module, int layer, int64_t in, int64_t out, bool bias = false);

  const std::map<std::string, std::vector<int64_t>>& tensors() const { return tensors_; }
  const std::vector<LinearLayer>& linears() const { return linears_; }

 private:
  std::map<std::string, std::vector<int64_t>> tensors_;
  std::vector<LinearLayer> linears_;  // in forward order
};

// Rows of one layer of a table: names are relative to "model.layers.N.".
class LayerRows {
 public:
  LayerRows(TensorTable& table, const ModelConfig& config, int layer);

  void Linear(absl::string_view name, int64_t in, int64_t out, bool bias = false);
  void Norms(std::initializer_list<absl::string_view> names, int64_t size);
  // q_proj, k_proj, v_proj and o_proj.
  void Attention(bool qkv_bias, bool o_bias);
  // gate_proj, up_proj and down_proj under `name`.
  void GatedMlp(bool bias);

  TensorTable& table() { return table_; }
  const std::string& prefix() const { return prefix_; }

 private:
  TensorTable& table_;
  const ModelConfig& config_;
  int layer_;
  std::string prefix_;
};

// A table with embedding, last norm and, unless tied, head; `add_layer` adds the rows of each layer between.
TensorTable DecoderTable(const ModelConfig& config, void (*add_layer)(const ModelConfig&, int layer, LayerRows& rows));

}  // namespace luthier
