// Self-attention of the families whose queries, keys and values have projections of their own.
#pragma once

#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/dot_product_attention.h"
#include "worker/trainer/models/common/norm.h"

namespace luthier {

// `HeadNorm` acts on queries and keys before they are rotated.
template <class HeadNorm>
class SelfAttention {
 public:
  SelfAttention(const Builder& build, const ModelConfig& config, int64_t layer)
      : q_proj_(build.MakeLinear("q_proj")),
        k_proj_(build.MakeLinear("k_proj")),
        v_proj_(build.MakeLinear("v_proj")),
        q_norm_(build, "q_norm", config.rms_norm_eps),
        k_norm_(build, "k_norm", config.rms_norm_eps),
        attend_(config, layer),
        o_proj_(build.MakeLinear("o_proj")),
        head_dim_(config.head_dim) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const std::vector<Tensor> qkv = Together(x_TD, pass.slices, {q_proj_.get(), k_proj_.get(), v_proj_.get()});
    const Tensor q_TNH = q_norm_(Heads(qkv[0])), k_TKH = k_norm_(Heads(qkv[1])), v_TKH = Heads(qkv[2]);
    return (*o_proj_)(attend_(q_TNH, k_TKH, v_TKH, pass).flatten(1), pass.slices);
  }

 private:
  Tensor Heads(const Tensor& x) const { return x.view({x.size(0), -1, head_dim_}); }

  std::unique_ptr<Linear> q_proj_, k_proj_, v_proj_;
  HeadNorm q_norm_, k_norm_;
  DotProductAttention attend_;
  std::unique_ptr<Linear> o_proj_;
  int64_t head_dim_;
};

}  // namespace luthier
