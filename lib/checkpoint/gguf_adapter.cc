#include "lib/checkpoint/gguf_adapter.h"

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {

absl::Status CheckFitsGgufAdapter(const AdapterConfig& adapter, const ModelConfig& model) {
  const auto refuse = [](const char* field, const char* why) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": a GGUF adapter cannot hold ", why, "; export the merged model instead"));
  };
  if (adapter.dora) return refuse("use_dora", "magnitudes");
  if (!adapter.modules_to_save.empty()) return refuse("modules_to_save", "whole modules");
  // llama.cpp finds what belongs to a weight by its name, which tied matrices share.
  for (const LinearLayer& layer : {HeadLayer(model), EmbeddingLayer(model)}) {
    if (!model.tie_word_embeddings || !adapter.Targets(layer.module, layer.layer)) continue;
    return refuse("target_modules", IsEmbedding(layer) ? "an adapter on an embedding that is tied to the head"
                                                       : "an adapter on a head that is tied to the embedding");
  }
  return absl::OkStatus();
}

}  // namespace luthier
