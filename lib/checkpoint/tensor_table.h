// The tensors of a checkpoint as a table, and the pieces that families build it from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "lib/checkpoint/model_config.h"

namespace luthier {

// A linear layer that can carry an adapter; or the same layer of all experts, which carry one together.
struct LinearLayer {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int layer;
  int64_t in;
  int64_t out;
  // The name of its weight, if PEFT targets that (`target_parameters`) and not the module. Else empty.
  std::string parameter = {};
  int64_t experts = 0;  // how many have it, each with an A and a B of its own; 0: it is no expert's

  int64_t matrices() const { return std::max<int64_t>(experts, 1); }
  // What `target_parameters` and the patterns of ranks and alphas are compared with.
  const std::string& name() const { return parameter.empty() ? module : parameter; }
};

// Name → shape of every tensor of a checkpoint, and the layers that can carry an adapter.
class TensorTable {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape) { tensors_[name] = std::move(shape); }
  // `module`.weight [out, in] and, with `bias`, `module`.bias [out]; a layer that can carry an adapter.
  void AddLinear(const std::string& module, int layer, int64_t in, int64_t out, bool bias = false);
  // A layer with a `parameter`, whose tensors are added apart.
  void AddParameter(LinearLayer layer) { parameters_.push_back(std::move(layer)); }

  const std::map<std::string, std::vector<int64_t>>& tensors() const { return tensors_; }
  const std::vector<LinearLayer>& linears() const { return linears_; }
  const std::vector<LinearLayer>& parameters() const { return parameters_; }

 private:
  std::map<std::string, std::vector<int64_t>> tensors_;
  std::vector<LinearLayer> linears_, parameters_;  // in forward order
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
