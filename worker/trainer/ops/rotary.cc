#include "worker/trainer/ops/rotary.h"

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Without kernels; `direction` is 1, or -1 for the negative angles.
Tensor Turned(const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP, double direction) {
  const std::vector<Tensor> halves = x_TNH.to(at::kFloat).chunk(2, -1);
  const Tensor cos_T1P = cos_TP.unsqueeze(1), sin_T1P = sin_TP.unsqueeze(1) * direction;
  return at::cat({halves[0] * cos_T1P - halves[1] * sin_T1P, halves[1] * cos_T1P + halves[0] * sin_T1P}, -1)
      .to(x_TNH.scalar_type());
}

Tensor Turn(const Tensor& x, const Tensor& cos_TP, const Tensor& sin_TP, decltype(&kernels::Rotate) rotate) {
  if (!HasKernels(x)) return Turned(x, cos_TP, sin_TP, rotate == &kernels::Rotate ? 1 : -1);
  const Tensor x_TNH = x.contiguous(), y_TNH = at::empty_like(x_TNH);
  const int64_t heads = x_TNH.size(1), head_size = x_TNH.size(2), pairs = cos_TP.size(1);
  const Tensor x_TD = x_TNH.flatten(1), y_TD = y_TNH.flatten(1);
  const float* cos = cos_TP.const_data_ptr<float>();
  const float* sin = sin_TP.const_data_ptr<float>();
  Parallel(x_TD.size(0), RowGrain(heads * head_size), [&](int64_t begin, int64_t end) {
    InputRows x_row(x_TD);
    OutputRows y_row(y_TD);
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x_row(t);
      float* to = y_row(t);
      for (int64_t head = 0; head < heads * head_size; head += head_size)
        rotate(from + head, cos + t * pairs, sin + t * pairs, pairs, to + head);
      y_row.Done(t);
    }
  });
  return y_TNH;
}

struct RotaryFunction : Function<RotaryFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP) {
    context->save_for_backward({cos_TP, sin_TP});
    return Turn(x_TNH, cos_TP, sin_TP, kernels::Rotate);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {Turn(grads[0], saved[0], saved[1], kernels::RotateBack), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor Rotary(const Tensor& x_TNH, const RotaryTable& table) {
  return RotaryFunction::apply(x_TNH, table.cos_TP, table.sin_TP);
}

}  // namespace luthier::ops
