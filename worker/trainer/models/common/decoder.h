// The frame of every family: embedding, layers, a last norm, the head.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/embedding.h"
#include "worker/trainer/models/common/pass.h"
#include "worker/trainer/models/common/rotary.h"
#include "worker/trainer/models/model.h"

namespace luthier {

inline Embedding MakeEmbedding(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora) {
  const auto adapters = lora.find(kEmbeddingModule);
  return {weights.at(kEmbedding), config.embedding_scale, config.padding_token,
          adapters == lora.end() ? std::vector<LoraWeights>() : adapters->second};
}

// A tied head is the embedding itself, without the adapters that it carries.
inline OutputHead MakeHead(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora) {
  const Tensor& weight_VD = weights.at(config.tie_word_embeddings ? kEmbedding : kHead);
  const auto adapters = lora.find(kHeadModule);
  std::unique_ptr<Linear> linear = std::make_unique<PlainLinear>(weight_VD, Tensor());
  if (adapters != lora.end()) linear = std::make_unique<LoraLinear>(weight_VD, Tensor(), adapters->second);
  return {std::move(linear), {config.logit_scale, config.logit_softcap}};
}

// `Layer` is built from (Builder, ModelConfig, layer number) and called with (x_TD, Pass); `Norm` is the last norm.
template <class Layer, class Norm>
class Decoder : public DecoderModel {
 public:
  Decoder(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora)
      : embedding_(MakeEmbedding(config, weights, lora)),
        norm_(Builder(weights, lora), "model.norm", config.rms_norm_eps),
        head_(MakeHead(config, weights, lora)) {
    for (const RopeConfig& rope : config.ropes) {
      rotary_.emplace_back(rope, embedding_.device());
      rotary_switch_length_ = std::max(rotary_switch_length_, rotary_.back().switch_length());
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      layers_.emplace_back(Builder(weights, lora, absl::StrCat("model.layers.", layer, ".")), config, layer);
    }
  }

  Tensor Forward(const Tensor& tokens_T, const Tensor& positions_T, const Tensor& lengths_T,
                 const std::shared_ptr<Attention>& attention, const AdapterSlices& slices) const override {
    const auto pass = std::make_shared<Pass>(Pass{{}, attention, slices});
    for (const RotaryEmbedding& rotary : rotary_) pass->rotary.push_back(rotary(positions_T, lengths_T));
    Tensor x_TD = embedding_(tokens_T, slices, compute_.type);
    for (const Layer& layer : layers_) {
      x_TD = compute_.recompute_layers
                 ? ops::Recomputed([&layer, pass](const Tensor& x) { return layer(x, *pass); }, x_TD)
                 : layer(x_TD, *pass);
    }
    return norm_(x_TD);
  }

  const OutputHead& head() const override { return head_; }
  at::Device device() const override { return embedding_.device(); }
  int64_t rotary_switch_length() const override { return rotary_switch_length_; }

 private:
  Embedding embedding_;
  std::vector<RotaryEmbedding> rotary_;
  int64_t rotary_switch_length_ = 0;
  std::vector<Layer> layers_;
  Norm norm_;
  OutputHead head_;
};

}  // namespace luthier
