#include "worker/trainer/models/phi3/model.h"

#include "worker/trainer/models/common/decoder.h"
#include "worker/trainer/models/common/dot_product_attention.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/pre_norm_layer.h"

namespace luthier {
namespace {

// One projection makes queries, keys and values, in this order.
class FusedSelfAttention {
 public:
  FusedSelfAttention(const Builder& build, const ModelConfig& config, int64_t layer)
      : qkv_proj_(build.MakeLinear("qkv_proj")),
        attend_(config, layer),
        o_proj_(build.MakeLinear("o_proj")),
        heads_(config.num_heads),
        kv_heads_(config.num_kv_heads),
        head_dim_(config.head_dim) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    // J = N + 2K heads.
    const Tensor qkv_TJH = (*qkv_proj_)(x_TD, pass.slices).view({x_TD.size(0), heads_ + 2 * kv_heads_, head_dim_});
    const Tensor q_TNH = qkv_TJH.slice(1, 0, heads_);
    const Tensor k_TKH = qkv_TJH.slice(1, heads_, heads_ + kv_heads_);
    const Tensor v_TKH = qkv_TJH.slice(1, heads_ + kv_heads_);
    return (*o_proj_)(attend_(q_TNH, k_TKH, v_TKH, pass).flatten(1), pass.slices);
  }

 private:
  std::unique_ptr<Linear> qkv_proj_;
  DotProductAttention attend_;
  std::unique_ptr<Linear> o_proj_;
  int64_t heads_, kv_heads_, head_dim_;
};

// One projection makes gate and up, the gate first.
class FusedGatedMlp {
 public:
  FusedGatedMlp(const Builder& build, const ModelConfig& config)
      : gate_up_proj_(build.MakeLinear("gate_up_proj")),
        down_proj_(build.MakeLinear("down_proj")),
        gated_(MakeGatedUnit(config.activation)),
        size_(config.intermediate_size) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor gate_up_TF = (*gate_up_proj_)(x_TD, pass.slices);
    return (*down_proj_)(gated_(gate_up_TF.slice(1, 0, size_), gate_up_TF.slice(1, size_)), pass.slices);
  }

 private:
  std::unique_ptr<Linear> gate_up_proj_, down_proj_;
  GatedUnit gated_;
  int64_t size_;
};

}  // namespace

std::unique_ptr<DecoderModel> MakePhi3(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora) {
  using Layer = PreNormLayer<FusedSelfAttention, FusedGatedMlp>;
  return std::make_unique<Decoder<Layer, RmsNorm>>(config, weights, lora);
}

}  // namespace luthier
