#include "worker/trainer/models/common/experts.h"

#include "absl/strings/str_cat.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/lora_linear.h"

namespace luthier {
namespace {

Tensor Adapted(const Tensor& x_TI, const Tensor& weight_OI, const LoraWeights& lora) {
  if (!lora.a_RI.defined()) return ops::Linear(x_TI, weight_OI, /*bias_O=*/Tensor());
  return ops::LoraLinears(x_TI, {{weight_OI, lora.a_RI, lora.b_OR, lora.scale}}, /*dropout=*/0)[0];
}

}  // namespace

Experts::Experts(const Builder& build, const ModelConfig& config)
    : router_(build.MakeLinear("gate")),
      gate_up_(build.AdapterOfAll("experts.gate_up_proj")),
      down_(build.AdapterOfAll("experts.down_proj")),
      gated_(MakeGatedUnit(config.activation)),
      per_token_(config.experts->per_token),
      normalize_(config.experts->normalize) {
  for (int64_t expert = 0; expert < config.experts->count; ++expert) {
    const Builder of_expert = build.Under(absl::StrCat("experts.", expert, "."));
    experts_.push_back({of_expert.Weight("gate_proj"), of_expert.Weight("up_proj"), of_expert.Weight("down_proj")});
  }
}

Tensor Experts::operator()(const Tensor& x_TD, const Pass& pass) const {
  const auto experts = static_cast<int64_t>(experts_.size());
  const Tensor probabilities_TE = (*router_)(x_TD, pass.slices).to(at::kFloat).softmax(-1);
  auto [shares_TC, chosen_TC] = probabilities_TE.topk(per_token_, -1);  // C choices of a token
  if (normalize_) shares_TC = shares_TC / shares_TC.sum(-1, /*keepdim=*/true);
  shares_TC = shares_TC.to(x_TD.scalar_type());

  // Choices in the order of their experts, so that the rows of each lie together: M = T · C of them.
  const Tensor order_M = chosen_TC.flatten().argsort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor tokens_M = order_M.div(per_token_, "floor");
  const Tensor counts_E = at::bincount(chosen_TC.flatten(), /*weights=*/{}, experts).to(at::kCPU);
  const Tensor x_MD = x_TD.index_select(0, tokens_M);
  // Cut out in every pass, since gradients flow through the cut.
  const std::vector<LoraWeights> gates = OfEachExpert(gate_up_, experts, 0, 2),
                                 ups = OfEachExpert(gate_up_, experts, 1, 2),
                                 downs = OfEachExpert(down_, experts, 0, 1);
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (size_t i = 0; i < experts_.size(); ++i) {
    const int64_t end = begin + counts_E[static_cast<int64_t>(i)].item<int64_t>();
    // An expert without tokens computes nothing and still gets a gradient, which is zero: so the optimizer treats it as
    // transformers does, where all experts are one parameter.
    const Expert& expert = experts_[i];
    const Tensor x = x_MD.slice(0, begin, end);
    const Tensor hidden = gated_(Adapted(x, expert.gate_FD, gates[i]), Adapted(x, expert.up_FD, ups[i]));
    parts.push_back(Adapted(hidden, expert.down_DF, downs[i]));
    begin = end;
  }
  const Tensor y_MD = at::cat(parts) * shares_TC.flatten().index_select(0, order_M).unsqueeze(1);
  return at::zeros_like(x_TD).index_add(0, tokens_M, y_MD);
}

Tensor StackedA(const Tensor& a_RI, int64_t experts) { return a_RI.reshape({experts, -1, a_RI.size(1)}); }

Tensor StackedB(const Tensor& b_OR, int64_t experts) {
  return b_OR.reshape({b_OR.size(0), -1, experts}).permute({2, 0, 1});
}

Tensor UnstackedB(const Tensor& b_EOR) { return b_EOR.permute({1, 2, 0}).flatten(1, 2).contiguous(); }

std::vector<LoraWeights> OfEachExpert(const LoraWeights& all, int64_t experts, int64_t part, int64_t parts) {
  std::vector<LoraWeights> each(static_cast<size_t>(experts));
  if (!all.a_RI.defined()) return each;
  // Unbound at once: the gradient of a slice is as large as what it was cut from.
  const std::vector<Tensor> a = StackedA(all.a_RI, experts).unbind();
  const std::vector<Tensor> b = StackedB(all.b_OR, experts).chunk(parts, /*dim=*/1)[static_cast<size_t>(part)].unbind();
  for (size_t i = 0; i < each.size(); ++i) each[i] = {a[i], b[i], all.scale, /*dropout=*/0, Tensor()};
  return each;
}

}  // namespace luthier
