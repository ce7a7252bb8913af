// Frequencies of rotary position embedding and their tables.
#pragma once

#include "lib/checkpoint/model_config.h"
#include "worker/trainer/ops/rotary.h"

namespace luthier {

// One of a model's rotary settings, on a device. Everything is computed in fp32 whatever the model's format: bf16
// cannot count beyond 256. Source: transformers modeling_rope_utils.py.
class RotaryEmbedding {
 public:
  RotaryEmbedding(const RopeConfig& rope, at::Device device);

  // cos and sin of position · frequency, times the attention factor. `lengths_T` is the length of the document that
  // each token belongs to: longrope and dynamic choose frequencies by it. transformers chooses by the longest row of a
  // batch, so that a row's result depends on its neighbours; here it does not.
  ops::RotaryTable operator()(const Tensor& positions_T, const Tensor& lengths_T) const;

  // Documents longer than this have other frequencies than shorter ones; 0: all the same.
  int64_t switch_length() const;

 private:
  // [P], or [T, P] where lengths decide.
  Tensor Frequencies(const Tensor& lengths_T) const;

  RopeConfig rope_;
  Tensor frequencies_P_;       // of documents up to the original length, where there is one
  Tensor long_frequencies_P_;  // longrope: beyond it
};

}  // namespace luthier
