#include "worker/trainer/ops/norm.h"

#include <utility>

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows whose contributions to the weight's gradient are added up together. Fixed, so that the sum does not depend on
// the number of threads.
constexpr int64_t kRowsOfSum = 128;

Tensor Float(const Tensor& x) { return x.to(at::kFloat); }

// Without kernels: x / rms(x) · w, and 1 / rms(x).
std::pair<Tensor, Tensor> Normed(const Tensor& x_TD, const Tensor& weight_D, double eps) {
  const Tensor x = Float(x_TD), inverse_rms_T1 = (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  return {(x * inverse_rms_T1 * Float(weight_D)).to(x_TD.scalar_type()), inverse_rms_T1};
}

// Gradients of that by x and w.
std::pair<Tensor, Tensor> NormGradients(const Tensor& x_TD, const Tensor& weight_D, const Tensor& inverse_rms_T1,
                                        const Tensor& dy_TD) {
  const Tensor normed_TD = Float(x_TD) * inverse_rms_T1, dnormed_TD = Float(dy_TD) * Float(weight_D);
  const Tensor along_T1 = (normed_TD * dnormed_TD).mean(-1, /*keepdim=*/true);
  const Tensor dweight_D = (Float(dy_TD) * normed_TD).flatten(0, -2).sum(0);
  return {((dnormed_TD - normed_TD * along_T1) * inverse_rms_T1).to(x_TD.scalar_type()),
          dweight_D.to(weight_D.scalar_type())};
}

struct RmsNormFunction : Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight_D, double eps) {
    if (!HasKernels(x)) {
      const auto [y_TD, inverse_rms_T1] = Normed(x, weight_D, eps);
      context->save_for_backward({x, weight_D, inverse_rms_T1});
      return y_TD;
    }
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
    if (!HasKernels(x_TD)) {
      const auto [dx_TD, dweight_D] = NormGradients(x_TD, saved[1], inverse_rms_T, grads[0]);
      return {dx_TD, context->needs_input_grad(1) ? dweight_D : Tensor(), Tensor()};
    }
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
