#include "worker/trainer/ops/lora_linear.h"

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/linear.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Where x is bf16 the adapter's products are computed as the base's are, and its fp32 weights are rounded for them, as
// under PEFT's autocast; the gradients of these weights are fp32 again.
struct LoraLinearFunction : Function<LoraLinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI,
                        const Tensor& b_OR, double scale, double dropout) {
    const int64_t seed = dropout > 0 ? DrawMaskSeed() : 0;
    const Tensor down_TR = TimesTransposed(Dropped(x_TI, seed, dropout), a_RI, x_TI.scalar_type());
    context->save_for_backward({x_TI, weight_OI, a_RI, b_OR, down_TR});
    context->saved_data["scale"] = scale;
    context->saved_data["dropout"] = dropout;
    context->saved_data["seed"] = seed;
    Tensor y_TO = TimesTransposed(x_TI, weight_OI, x_TI.scalar_type());
    AddTimes(down_TR, b_OR.t(), scale, y_TO);
    return y_TO;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TI = saved[0], &weight_OI = saved[1], &a_RI = saved[2], &b_OR = saved[3], &down_TR = saved[4];
    const double scale = context->saved_data["scale"].toDouble(), dropout = context->saved_data["dropout"].toDouble();
    const int64_t seed = context->saved_data["seed"].toInt();
    const Tensor& dy_TO = grads[0];
    const Tensor ddown_TR = Times(dy_TO, b_OR, x_TI.scalar_type()).mul_(scale);
    const Tensor da_RI = WeightGradient(ddown_TR, Dropped(x_TI, seed, dropout), a_RI.scalar_type());
    const Tensor db_OR = WeightGradient(dy_TO, down_TR, b_OR.scalar_type()).mul_(scale);
    Tensor dx_TI;
    if (context->needs_input_grad(0)) {
      dx_TI = Times(dy_TO, weight_OI, x_TI.scalar_type());
      if (dropout == 0) {
        AddTimes(ddown_TR, a_RI, 1, dx_TI);
      } else {
        dx_TI.add_(Dropped(Times(ddown_TR, a_RI, x_TI.scalar_type()), seed, dropout));
      }
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
