#include "worker/trainer/ops/rotary.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rotation by the table's angles; `direction` -1 is the inverse, which is also the transpose.
Tensor Rotate(const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP, double direction) {
  const int64_t pairs = x_TNH.size(-1) / 2;
  const Tensor x = x_TNH.to(at::kFloat);
  const Tensor first = x.slice(-1, 0, pairs), second = x.slice(-1, pairs);
  const Tensor cos = cos_TP.unsqueeze(1), sin = sin_TP.unsqueeze(1);
  Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor out_first = out.slice(-1, 0, pairs), out_second = out.slice(-1, pairs);
  at::mul_out(out_first, first, cos).addcmul_(second, sin, -direction);
  at::mul_out(out_second, second, cos).addcmul_(first, sin, direction);
  return out.to(x_TNH.scalar_type());
}

struct RotaryFunction : Function<RotaryFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP) {
    context->save_for_backward({cos_TP, sin_TP});
    return Rotate(x_TNH, cos_TP, sin_TP, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {Rotate(grads[0], saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor Rotary(const Tensor& x_TNH, const RotaryTable& table) {
  return RotaryFunction::apply(x_TNH, table.cos_TP, table.sin_TP);
}

}  // namespace luthier::ops
