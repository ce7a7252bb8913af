#include "lib/checkpoint/gguf_adapter.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {

absl::Status CheckFitsGgufAdapter(const AdapterConfig& adapter, const ModelConfig& model) {
  const bool no_head = FindFamily(model.model_type)->gguf_has_no_head;
  const LinearLayer apart[] = {HeadLayer(model), EmbeddingLayer(model)};
  // Tied matrices of which one was tuned are two when they are merged.
  const bool merges = !no_head || std::none_of(std::begin(apart), std::end(apart), [&](const LinearLayer& layer) {
    return adapter.Targets(layer.module, layer.layer) || adapter.Saves(layer.module);
  });
  const std::string remedy = merges ? "export the merged model instead"
                                    : absl::StrCat("llama.cpp knows no ", model.model_type,
                                                   " with a head of its own, which a merged model has here; ",
                                                   "for llama.cpp, leave lm_head and embed_tokens as they are");
  const auto refuse = [&](const char* field, const char* why) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": a GGUF adapter cannot hold ", why, "; ", remedy));
  };
  if (adapter.dora) return refuse("use_dora", "magnitudes");
  if (!adapter.modules_to_save.empty()) return refuse("modules_to_save", "whole modules");
  // llama.cpp finds what belongs to a weight by its name, which tied matrices share.
  for (const LinearLayer& layer : apart) {
    const bool tied = model.tie_word_embeddings || no_head;
    if (!tied || !adapter.Targets(layer.module, layer.layer)) continue;
    return refuse("target_modules", IsEmbedding(layer) ? "an adapter on an embedding that is tied to the head"
                                                       : "an adapter on a head that is tied to the embedding");
  }
  return absl::OkStatus();
}

}  // namespace luthier
