#include "worker/trainer/models/common/experts.h"

#include "absl/strings/str_cat.h"

namespace luthier {

Experts::Experts(const Builder& build, const ModelConfig& config)
    : router_ED_(build.Weight("gate")), per_token_(config.experts->per_token), normalize_(config.experts->normalize) {
  for (int64_t expert = 0; expert < config.experts->count; ++expert) {
    experts_.emplace_back(build.Under(absl::StrCat("experts.", expert, ".")), config);
  }
}

Tensor Experts::operator()(const Tensor& x_TD, const Pass& pass) const {
  const Tensor probabilities_TE = ops::Linear(x_TD, router_ED_, /*bias_O=*/Tensor()).to(at::kFloat).softmax(-1);
  auto [shares_TC, chosen_TC] = probabilities_TE.topk(per_token_, -1);  // C choices of a token
  if (normalize_) shares_TC = shares_TC / shares_TC.sum(-1, /*keepdim=*/true);
  shares_TC = shares_TC.to(x_TD.scalar_type());

  // Choices in the order of their experts, so that the rows of each lie together.
  const Tensor order = chosen_TC.flatten().argsort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor tokens = order.div(per_token_, "floor");
  const Tensor counts_E =
      at::bincount(chosen_TC.flatten(), /*weights=*/{}, static_cast<int64_t>(experts_.size())).to(at::kCPU);
  const Tensor x_RD = x_TD.index_select(0, tokens);  // R rows, C for each token
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (size_t expert = 0; expert < experts_.size(); ++expert) {
    const int64_t end = begin + counts_E[static_cast<int64_t>(expert)].item<int64_t>();
    // An expert without tokens computes nothing and still gets a gradient, which is zero: so the optimizer treats it as
    // transformers does, where all experts are one parameter.
    parts.push_back(experts_[expert](x_RD.slice(0, begin, end), pass));
    begin = end;
  }
  const Tensor y_RD = at::cat(parts) * shares_TC.flatten().index_select(0, order).unsqueeze(1);
  return at::zeros_like(x_TD).index_add(0, tokens, y_RD);
}

}  // namespace luthier
