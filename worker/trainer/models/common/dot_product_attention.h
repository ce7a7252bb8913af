// The part of attention that has no weights.
#pragma once

#include "lib/checkpoint/model_config.h"
#include "worker/trainer/models/common/pass.h"

namespace luthier {

// Rotates queries and keys as the layer wants it, and mixes the values.
class DotProductAttention {
 public:
  DotProductAttention(const ModelConfig& config, int64_t layer);

  // q_TNH, k_TKH, v_TKH → [T, N, H].
  Tensor operator()(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Pass& pass) const;

 private:
  Tensor Rotated(const Tensor& x_TNH, const Pass& pass) const;

  int64_t layer_;
  ops::AttentionForm form_;
  std::optional<size_t> rope_;
};

}  // namespace luthier
