#include "worker/trainer/ops/loss_head.h"

#include <algorithm>
#include <numeric>

#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of logits that exist at a time (C in shapes): 512 × 128k fp32 is 256 MiB, and larger products gain no speed.
constexpr int64_t kHeadChunkRows = 512;

// ApplyLogitForm in place. Returns d(result)/d(scaled logits), undefined where it is 1.
Tensor ApplyFormInPlace(Tensor& logits_CV, const LogitForm& form, bool with_slope) {
  if (form.scale != 1) logits_CV.mul_(form.scale);
  if (form.softcap == 0) return {};
  logits_CV.div_(form.softcap).tanh_();
  const Tensor slope_CV = with_slope ? 1 - logits_CV.square() : Tensor();
  logits_CV.mul_(form.softcap);
  return slope_CV;
}

// Appends -log softmax at the label of each row. The logits become the gradient of the sum: the probabilities, less one
// at the label.
void CrossEntropyInPlace(const Tensor& logits_CV, const Tensor& labels_C, std::vector<double>& losses) {
  const int64_t rows = logits_CV.size(0), vocabulary = logits_CV.size(1);
  float* logits = logits_CV.mutable_data_ptr<float>();
  const int64_t* labels = labels_C.const_data_ptr<int64_t>();
  const size_t before = losses.size();
  losses.resize(before + static_cast<size_t>(rows));
  Parallel(rows, RowGrain(vocabulary), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* row_V = logits + row * vocabulary;
      const double label_logit = row_V[labels[row]];
      losses[before + static_cast<size_t>(row)] = kernels::Softmax(row_V, vocabulary, 1) - label_logit;
      row_V[labels[row]] -= 1;
    }
  });
}

// The same without kernels. Returns the terms of the sum, where they are.
Tensor ComposedCrossEntropyInPlace(const Tensor& logits_CV, const Tensor& labels_C) {
  const Tensor labels_C1 = labels_C.unsqueeze(1), log_sums_C1 = logits_CV.logsumexp(-1, /*keepdim=*/true);
  const Tensor losses_C = (log_sums_C1 - logits_CV.gather(1, labels_C1)).squeeze(1);
  logits_CV.sub_(log_sums_C1).exp_();
  logits_CV.scatter_add_(1, labels_C1, at::full_like(log_sums_C1, -1));
  return losses_C;
}

struct SumCrossEntropyFunction : Function<SumCrossEntropyFunction> {
  // Which inputs need a gradient is an argument: inside forward recording is off and the context cannot tell.
  static Tensor forward(AutogradContext* context, const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T,
                        double scale, double softcap, bool any_gradient, bool head_trains,
                        std::vector<double>* losses) {
    Tensor dh_TD, dhead_VD;
    if (any_gradient) dh_TD = at::empty_like(h_TD);
    if (head_trains) dhead_VD = at::zeros_like(head_VD);
    const bool has_kernels = HasKernels(h_TD);
    std::vector<Tensor> composed_losses;
    int64_t begin = 0;
    for (const auto& [h_CD, labels_C] : HeadChunks(h_TD, labels_T)) {
      Tensor dh_CD = any_gradient ? dh_TD.slice(0, begin, begin + h_CD.size(0)) : Tensor();
      begin += h_CD.size(0);
      Tensor logits_CV = TimesTransposed(h_CD, head_VD, at::kFloat);
      const Tensor slope_CV = ApplyFormInPlace(logits_CV, {scale, softcap}, any_gradient);
      if (has_kernels) {
        CrossEntropyInPlace(logits_CV, labels_C, *losses);
      } else {
        composed_losses.push_back(ComposedCrossEntropyInPlace(logits_CV, labels_C));
      }
      if (!any_gradient) continue;
      if (slope_CV.defined()) logits_CV.mul_(slope_CV);
      if (scale != 1) logits_CV.mul_(scale);
      dh_CD.copy_(Times(logits_CV, head_VD, h_TD.scalar_type()));
      if (head_trains) AddWeightGradient(logits_CV, h_CD, dhead_VD);
    }
    context->save_for_backward({dh_TD, dhead_VD});
    if (!composed_losses.empty()) {  // read once for all chunks: reading waits for the device
      const Tensor on_cpu = at::cat(composed_losses).to(at::kCPU, at::kDouble);
      losses->assign(on_cpu.const_data_ptr<double>(), on_cpu.const_data_ptr<double>() + on_cpu.numel());
    }
    return at::scalar_tensor(std::accumulate(losses->begin(), losses->end(), 0.0), h_TD.options().dtype(at::kFloat));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    Tensor dh_TD, dhead_VD;
    if (saved[0].defined()) dh_TD = saved[0] * grads[0].to(saved[0].scalar_type());
    if (saved[1].defined()) dhead_VD = saved[1] * grads[0].to(saved[1].scalar_type());
    return {dh_TD, dhead_VD, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

std::vector<std::pair<Tensor, Tensor>> HeadChunks(const Tensor& h_TD, const Tensor& labels_T) {
  std::vector<std::pair<Tensor, Tensor>> chunks;
  for (int64_t begin = 0; begin < h_TD.size(0); begin += kHeadChunkRows) {
    const int64_t end = std::min(begin + kHeadChunkRows, h_TD.size(0));
    chunks.emplace_back(h_TD.slice(0, begin, end), labels_T.slice(0, begin, end));
  }
  return chunks;
}

Tensor ApplyLogitForm(const Tensor& raw_TV, const LogitForm& form) {
  const Tensor scaled_TV = form.scale == 1 ? raw_TV : raw_TV * form.scale;
  return form.softcap == 0 ? scaled_TV : at::tanh(scaled_TV / form.softcap) * form.softcap;
}

Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T, const LogitForm& form,
                       std::vector<double>* losses) {
  std::vector<double> of_rows;
  const bool head_trains = at::GradMode::is_enabled() && head_VD.requires_grad();
  const bool any_gradient = head_trains || (at::GradMode::is_enabled() && h_TD.requires_grad());
  return SumCrossEntropyFunction::apply(h_TD, head_VD, labels_T, form.scale, form.softcap, any_gradient, head_trains,
                                        losses != nullptr ? losses : &of_rows);
}

}  // namespace luthier::ops
