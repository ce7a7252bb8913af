#include "worker/trainer/ops/norm.h"

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows whose contributions to the weight's gradient are added up together. Fixed, so that the sum does not depend on
// the number of threads.
constexpr int64_t kRowsOfSum = 128;

struct RmsNormFunction : Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight_D, double eps) {
    const Tensor x_TD = x.contiguous(), weight = weight_D.to(at::kFloat);
    const int64_t size = x_TD.size(-1), rows = x_TD.numel() / size;
    const Tensor y_TD = at::empty_like(x_TD), inverse_rms_T = at::empty({rows}, at::kFloat);
    const float* w = weight.const_data_ptr<float>();
    float* inverse_rms = inverse_rms_T.mutable_data_ptr<float>();
    Parallel(rows, RowGrain(size), [&](int64_t begin, int64_t end) {
      InputRows x_row(x_TD);
      OutputRows y_row(y_TD);
      for (int64_t t = begin; t < end; ++t) {
        inverse_rms[t] = kernels::RmsNorm(x_row(t), w, size, static_cast<float>(eps), y_row(t));
        y_row.Done(t);
      }
    });
    context->save_for_backward({x_TD, weight_D, inverse_rms_T});
    return y_TD;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TD = saved[0], &inverse_rms_T = saved[2];
    const Tensor dy_TD = grads[0].contiguous(), dx_TD = at::empty_like(x_TD), weight = saved[1].to(at::kFloat);
    const int64_t size = x_TD.size(-1), rows = x_TD.numel() / size, sums = (rows + kRowsOfSum - 1) / kRowsOfSum;
    const bool weight_trains = context->needs_input_grad(1);
    Tensor dweight_SD;  // S sums
    if (weight_trains) dweight_SD = at::zeros({sums, size}, at::kFloat);
    const float* w = weight.const_data_ptr<float>();
    const float* inverse_rms = inverse_rms_T.const_data_ptr<float>();
    Parallel(sums, 1, [&](int64_t begin, int64_t end) {
      InputRows x_row(x_TD), dy_row(dy_TD);
      OutputRows dx_row(dx_TD);
      for (int64_t t = begin * kRowsOfSum; t < std::min(end * kRowsOfSum, rows); ++t) {
        float* dw = weight_trains ? dweight_SD.mutable_data_ptr<float>() + t / kRowsOfSum * size : nullptr;
        kernels::RmsNormBackward(x_row(t), w, dy_row(t), inverse_rms[t], size, dx_row(t), dw);
        dx_row.Done(t);
      }
    });
    return {dx_TD, weight_trains ? dweight_SD.sum(0).to(saved[1].scalar_type()) : Tensor(), Tensor()};
  }
};

}  // namespace

Tensor RmsNorm(const Tensor& x_TD, const Tensor& weight_D, double eps) {
  return RmsNormFunction::apply(x_TD, weight_D, eps);
}

}  // namespace luthier::ops
