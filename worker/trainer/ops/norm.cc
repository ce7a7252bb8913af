#include "worker/trainer/ops/norm.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct RmsNormFunction : Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TD, const Tensor& weight_D, double eps) {
    const Tensor inverse_rms_T1 = x_TD.to(at::kFloat).square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
    context->save_for_backward({x_TD, weight_D, inverse_rms_T1});
    return x_TD.to(at::kFloat).mul(inverse_rms_T1).to(x_TD.scalar_type()).mul_(weight_D);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor x_TD = saved[0].to(at::kFloat), weight_D = saved[1].to(at::kFloat), inverse_rms_T1 = saved[2];
    const Tensor dy_TD = grads[0].to(at::kFloat);
    const Tensor normed_TD = x_TD * inverse_rms_T1;
    const Tensor dn_TD = dy_TD * weight_D;
    const Tensor dx_TD = (dn_TD - normed_TD * (dn_TD * normed_TD).mean(-1, true)) * inverse_rms_T1;
    Tensor dweight_D;
    if (context->needs_input_grad(1)) dweight_D = (dy_TD * normed_TD).sum(0).to(saved[1].scalar_type());
    return {dx_TD.to(saved[0].scalar_type()), dweight_D, Tensor()};
  }
};

}  // namespace

Tensor RmsNorm(const Tensor& x_TD, const Tensor& weight_D, double eps) { return RmsNormFunction::apply(x_TD, weight_D, eps); }

}  // namespace luthier::ops
