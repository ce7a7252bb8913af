#include "worker/trainer/ops/geglu.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct GeGluFunction : Function<GeGluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_TF, const Tensor& up_TF) {
    context->save_for_backward({gate_TF, up_TF});
    return at::gelu(gate_TF, "tanh").mul_(up_TF);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor& gate_TF = saved[0];
    const Tensor& up_TF = saved[1];
    const Tensor dup_TF = at::gelu(gate_TF, "tanh").mul_(grads[0]);
    const Tensor dgate_TF = at::gelu_backward(grads[0] * up_TF, gate_TF, "tanh");
    return {dgate_TF, dup_TF};
  }
};

}  // namespace

Tensor GeGlu(const Tensor& gate_TF, const Tensor& up_TF) { return GeGluFunction::apply(gate_TF, up_TF); }

}  // namespace luthier::ops
