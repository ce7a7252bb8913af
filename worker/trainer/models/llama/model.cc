// Shape suffixes: T tokens, D hidden size, F intermediate size, N query heads, K key/value heads, H head size, V vocabulary.
#include "worker/trainer/models/llama/model.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/models/common/rotary.h"

namespace luthier {
namespace {

// Hands out the tensors and linear layers of one prefix of the checkpoint.
class Builder {
 public:
  Builder(const NamedTensors& weights, const LoraLayers& lora, std::string prefix)
      : weights_(weights), lora_(lora), prefix_(std::move(prefix)) {}

  Tensor Weight(const std::string& name) const { return weights_.at(prefix_ + name + ".weight"); }

  std::unique_ptr<Linear> MakeLinear(const std::string& name) const {
    const auto adapters = lora_.find(prefix_ + name);
    if (adapters == lora_.end()) return std::make_unique<PlainLinear>(Weight(name));
    return std::make_unique<LoraLinear>(Weight(name), adapters->second);
  }

 private:
  const NamedTensors& weights_;
  const LoraLayers& lora_;
  std::string prefix_;
};

// What one forward pass hands to every layer.
struct Pass {
  const ops::RotaryTable& rotary;
  Attention& attention;
  const AdapterSlices& slices;
};

class SelfAttention {
 public:
  SelfAttention(const Builder& build, int64_t layer, int64_t head_dim)
      : q_proj_(build.MakeLinear("self_attn.q_proj")),
        k_proj_(build.MakeLinear("self_attn.k_proj")),
        v_proj_(build.MakeLinear("self_attn.v_proj")),
        o_proj_(build.MakeLinear("self_attn.o_proj")),
        layer_(layer),
        head_dim_(head_dim),
        form_{1 / std::sqrt(static_cast<double>(head_dim))} {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor q_TNH = Heads((*q_proj_)(x_TD, pass.slices));
    const Tensor k_TKH = Heads((*k_proj_)(x_TD, pass.slices));
    const Tensor v_TKH = Heads((*v_proj_)(x_TD, pass.slices));
    const Tensor mixed_TNH =
        pass.attention.Attend(layer_, form_, ops::Rotary(q_TNH, pass.rotary), ops::Rotary(k_TKH, pass.rotary), v_TKH);
    return (*o_proj_)(mixed_TNH.flatten(1), pass.slices);
  }

 private:
  Tensor Heads(const Tensor& x) const { return x.view({x.size(0), -1, head_dim_}); }

  std::unique_ptr<Linear> q_proj_, k_proj_, v_proj_, o_proj_;
  int64_t layer_;
  int64_t head_dim_;
  ops::AttentionForm form_;
};

class Mlp {
 public:
  explicit Mlp(const Builder& build)
      : gate_proj_(build.MakeLinear("mlp.gate_proj")),
        up_proj_(build.MakeLinear("mlp.up_proj")),
        down_proj_(build.MakeLinear("mlp.down_proj")) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    return (*down_proj_)(ops::SwiGlu((*gate_proj_)(x_TD, pass.slices), (*up_proj_)(x_TD, pass.slices)), pass.slices);
  }

 private:
  std::unique_ptr<Linear> gate_proj_, up_proj_, down_proj_;
};

class Layer {
 public:
  Layer(const Builder& build, int64_t layer, const ModelConfig& config)
      : input_norm_D_(build.Weight("input_layernorm")),
        attention_(build, layer, config.head_dim),
        post_attention_norm_D_(build.Weight("post_attention_layernorm")),
        mlp_(build),
        eps_(config.rms_norm_eps) {}

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const {
    const Tensor h_TD = x_TD + attention_(ops::RmsNorm(x_TD, input_norm_D_, eps_), pass);
    return h_TD + mlp_(ops::RmsNorm(h_TD, post_attention_norm_D_, eps_), pass);
  }

 private:
  Tensor input_norm_D_;
  SelfAttention attention_;
  Tensor post_attention_norm_D_;
  Mlp mlp_;
  double eps_;
};

class LlamaModel : public DecoderModel {
 public:
  LlamaModel(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora)
      : embedding_VD_(weights.at("model.embed_tokens.weight")),
        norm_D_(weights.at("model.norm.weight")),
        head_VD_(config.tie_word_embeddings ? embedding_VD_ : weights.at("lm_head.weight")),
        inverse_frequencies_P_(InverseFrequencies(config.rope, config.head_dim).to(embedding_VD_.device())),
        eps_(config.rms_norm_eps) {
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      layers_.emplace_back(Builder(weights, lora, absl::StrCat("model.layers.", layer, ".")), layer, config);
    }
  }

  Tensor Forward(const Tensor& tokens_T, const Tensor& positions_T, Attention& attention,
                 const AdapterSlices& slices) const override {
    const ops::RotaryTable rotary = MakeRotaryTable(positions_T, inverse_frequencies_P_);
    const Pass pass{rotary, attention, slices};
    Tensor x_TD = at::embedding(embedding_VD_, tokens_T);
    for (const Layer& layer : layers_) x_TD = layer(x_TD, pass);
    return ops::RmsNorm(x_TD, norm_D_, eps_);
  }

  const Tensor& head_VD() const override { return head_VD_; }

 private:
  Tensor embedding_VD_;
  std::vector<Layer> layers_;
  Tensor norm_D_;
  Tensor head_VD_;
  Tensor inverse_frequencies_P_;
  double eps_;
};

}  // namespace

std::unique_ptr<DecoderModel> MakeLlama(const ModelConfig& config, const NamedTensors& weights, const LoraLayers& lora) {
  return std::make_unique<LlamaModel>(config, weights, lora);
}

}  // namespace luthier
