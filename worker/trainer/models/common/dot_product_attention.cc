#include "worker/trainer/models/common/dot_product_attention.h"

namespace luthier {

DotProductAttention::DotProductAttention(const ModelConfig& config, int64_t layer)
    : layer_(layer),
      form_{config.attention_scale, config.layers[static_cast<size_t>(layer)].window.value_or(0),
            config.attention_softcap, config.attention_dropout},
      rope_(config.layers[static_cast<size_t>(layer)].rope) {}

Tensor DotProductAttention::operator()(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH,
                                       const Pass& pass) const {
  return pass.attention->Attend(layer_, form_, Rotated(q_TNH, pass), Rotated(k_TKH, pass), v_TKH);
}

Tensor DotProductAttention::Rotated(const Tensor& x_TNH, const Pass& pass) const {
  if (!rope_) return x_TNH;
  const ops::RotaryTable& table = pass.rotary[*rope_];
  const int64_t rotary_dim = 2 * table.cos_TP.size(1);
  if (rotary_dim == x_TNH.size(2)) return ops::Rotary(x_TNH, table);
  return at::cat({ops::Rotary(x_TNH.slice(2, 0, rotary_dim), table), x_TNH.slice(2, rotary_dim)}, 2);
}

}  // namespace luthier
