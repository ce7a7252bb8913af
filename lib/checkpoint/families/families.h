// The model families: how a config.json of each reads, and which tensors its checkpoints hold.
// The forward passes are in worker/trainer/models, a folder each.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "lib/checkpoint/field_reader.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/tensor_table.h"

namespace luthier {

struct Family {
  std::string model_type;    // "qwen3", as config.json names it
  std::string architecture;  // "Qwen3ForCausalLM", the one head that is implemented
  // Reads every field that changes the mathematics of the family. What it does not read is refused by name afterwards,
  // unless it is known to be harmless.
  void (*read)(FieldReader& fields, ModelConfig& config);
  // Adds the tensors of one layer; embedding, last norm and head are those of every family (DecoderTable).
  void (*add_layer)(const ModelConfig& config, int layer, LayerRows& rows);
  std::string gguf_architecture;  // as llama.cpp calls the family
  // llama.cpp rotates neighbours where Hugging Face rotates halves, so its files hold the rows of q_proj and k_proj in
  // another order.
  bool gguf_permutes_heads = false;
  // Fields of the family's files that its forward pass does not depend on, besides those that no family's does.
  std::set<std::string> harmless_fields = {};
  // llama.cpp's model takes the embedding for its head, and its converter leaves a head of its own out without a word.
  bool gguf_has_no_head = false;
};

// Null if there is no such family.
const Family* FindFamily(const std::string& model_type);

// All families' model types, for messages.
std::vector<std::string> FamilyNames();

// What every family has: sizes, norms, tying, dropout. Defaults of a family that are not Llama's stand in `config`
// before; afterwards each layer sees every token and rotates as the first of `config.ropes`, which the family still has
// to read.
void ReadDecoder(FieldReader& fields, ModelConfig& config);

// The activation of the gate, from `field`.
void ReadActivation(FieldReader& fields, ModelConfig& config, const char* field, const std::string& fallback);

// Gives `window` to the layers that `layer_types` calls sliding_attention; where that field is absent, to those that
// `slides` chooses. A sliding layer without a window is a violation.
void ReadSlidingLayers(FieldReader& fields, ModelConfig& config, std::optional<int64_t> window,
                       const std::function<bool(int64_t layer)>& slides);

// `use_sliding_window`, `sliding_window`, `max_window_layers` and `layer_types`, as Qwen has them.
void ReadQwenWindows(FieldReader& fields, ModelConfig& config);

// ReadDecoder and ReadActivation with the defaults and scales that Gemma 2 and 3 share.
void ReadGemmaDecoder(FieldReader& fields, ModelConfig& config);

// Llama's layer, which other families have too: two norms, attention and a gated MLP, with the biases that the config
// names.
void AddLlamaLayer(const ModelConfig& config, int layer, LayerRows& rows);

Family Gemma2Family();
Family Gemma3Family();
Family GraniteFamily();
Family LlamaFamily();
Family MistralFamily();
Family Olmo2Family();
Family Phi3Family();
Family Qwen2Family();
Family Qwen3Family();
Family Qwen3MoeFamily();
Family SmolLm3Family();

}  // namespace luthier
