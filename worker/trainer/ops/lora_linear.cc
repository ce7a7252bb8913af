#include "worker/trainer/ops/lora_linear.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct LoraLinearFunction : Function<LoraLinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI,
                        const Tensor& b_OR, double scale, double dropout) {
    Tensor keep_TI;  // 0 where dropped, 1/(1-p) elsewhere; undefined without dropout
    if (dropout > 0) keep_TI = at::empty_like(x_TI).bernoulli_(1 - dropout).div_(1 - dropout);
    const Tensor adapter_x_TI = keep_TI.defined() ? x_TI * keep_TI : x_TI;
    const Tensor down_TR = at::linear(adapter_x_TI.to(a_RI.scalar_type()), a_RI);
    context->save_for_backward({x_TI, weight_OI, a_RI, b_OR, down_TR, keep_TI});
    context->saved_data["scale"] = scale;
    Tensor y_TO = at::linear(x_TI, weight_OI);
    if (y_TO.scalar_type() == b_OR.scalar_type()) return y_TO.addmm_(down_TR, b_OR.t(), 1, scale);
    return y_TO.add_(at::linear(down_TR, b_OR).mul_(scale));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TI = saved[0], &weight_OI = saved[1], &a_RI = saved[2], &b_OR = saved[3], &down_TR = saved[4],
                 &keep_TI = saved[5];
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor dy_TO = grads[0].to(b_OR.scalar_type());
    const Tensor ddown_TR = at::mm(dy_TO, b_OR).mul_(scale);
    const Tensor adapter_x_TI = keep_TI.defined() ? x_TI * keep_TI : x_TI;
    const Tensor da_RI = at::mm(ddown_TR.t(), adapter_x_TI.to(a_RI.scalar_type()));
    const Tensor db_OR = at::mm(dy_TO.t(), down_TR).mul_(scale);
    Tensor dx_TI;
    if (context->needs_input_grad(0)) {
      dx_TI = at::mm(grads[0], weight_OI);
      Tensor adapter_dx_TI = at::mm(ddown_TR, a_RI);
      if (keep_TI.defined()) adapter_dx_TI.mul_(keep_TI);
      dx_TI.add_(adapter_dx_TI);
    }
    return {dx_TI, Tensor(), da_RI, db_OR, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor LoraLinear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI, const Tensor& b_OR, double scale,
                  double dropout) {
  return LoraLinearFunction::apply(x_TI, weight_OI, a_RI, b_OR, scale, dropout);
}

}  // namespace luthier::ops
