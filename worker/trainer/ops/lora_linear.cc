#include "worker/trainer/ops/lora_linear.h"

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/linear.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct LoraLinearFunction : Function<LoraLinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI,
                        const Tensor& b_OR, double scale, double dropout) {
    const int64_t seed = dropout > 0 ? DrawMaskSeed() : 0;
    const Tensor down_TR = at::linear(Dropped(x_TI, seed, dropout).to(a_RI.scalar_type()), a_RI);
    context->save_for_backward({x_TI, weight_OI, a_RI, b_OR, down_TR});
    context->saved_data["scale"] = scale;
    context->saved_data["dropout"] = dropout;
    context->saved_data["seed"] = seed;
    // The adapter is fp32 whatever the base is: its change of y is not rounded before it is added. What y needs in
    // between is allocated behind y, so that it leaves no hole in front of what is kept.
    Tensor y_TO = TimesTransposed(x_TI, weight_OI, x_TI.scalar_type());
    if (y_TO.scalar_type() == b_OR.scalar_type()) return y_TO.addmm_(down_TR, b_OR.t(), 1, scale);
    return y_TO.copy_(y_TO.to(b_OR.scalar_type()).addmm_(down_TR, b_OR.t(), 1, scale));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TI = saved[0], &weight_OI = saved[1], &a_RI = saved[2], &b_OR = saved[3], &down_TR = saved[4];
    const double scale = context->saved_data["scale"].toDouble(), dropout = context->saved_data["dropout"].toDouble();
    const int64_t seed = context->saved_data["seed"].toInt();
    const Tensor dy_TO = grads[0].to(b_OR.scalar_type());
    const Tensor ddown_TR = at::mm(dy_TO, b_OR).mul_(scale);
    const Tensor da_RI = at::mm(ddown_TR.t(), Dropped(x_TI, seed, dropout).to(a_RI.scalar_type()));
    const Tensor db_OR = at::mm(dy_TO.t(), down_TR).mul_(scale);
    Tensor dx_TI;
    if (context->needs_input_grad(0)) {
      dx_TI = Times(grads[0], weight_OI, a_RI.scalar_type());
      if (dropout == 0) {
        dx_TI.addmm_(ddown_TR, a_RI);
      } else {
        dx_TI.add_(Dropped(at::mm(ddown_TR, a_RI), seed, dropout));
      }
      dx_TI = dx_TI.to(x_TI.scalar_type());
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
