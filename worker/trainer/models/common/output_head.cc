#include "worker/trainer/models/common/output_head.h"

namespace luthier {

Tensor OutputHead::Logits(const Tensor& h_TD, size_t adapter) const {
  return ops::ApplyLogitForm((*linear_)(h_TD.to(at::kFloat), {{adapter, 0, h_TD.size(0)}}), form_);
}

Tensor OutputHead::SumCrossEntropy(const Tensor& h_TD, const Tensor& labels_T, size_t adapter,
                                   std::vector<double>* losses) const {
  const auto [x_TI, weight_VI] = linear_->AsProduct(h_TD, adapter);
  return ops::SumCrossEntropy(x_TI, weight_VI, labels_T, form_, losses);
}

}  // namespace luthier
