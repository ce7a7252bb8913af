#include "worker/trainer/ops/gated_unit.h"

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/rows.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The kernels of one activation, and LibTorch's operations.
struct Silu {
  static Tensor Of(const Tensor& gate) { return at::silu(gate); }
  static Tensor Gradient(const Tensor& dy, const Tensor& gate) { return at::silu_backward(dy, gate); }
  static constexpr auto kForward = &kernels::SwiGlu;
  static constexpr auto kBackward = &kernels::SwiGluBackward;
};
struct Gelu {
  static Tensor Of(const Tensor& gate) { return at::gelu(gate, "tanh"); }
  static Tensor Gradient(const Tensor& dy, const Tensor& gate) { return at::gelu_backward(dy, gate, "tanh"); }
  static constexpr auto kForward = &kernels::GeGlu;
  static constexpr auto kBackward = &kernels::GeGluBackward;
};

template <class Activation>
struct GatedUnitFunction : Function<GatedUnitFunction<Activation>> {
  static Tensor forward(AutogradContext* context, const Tensor& gate, const Tensor& up) {
    if (!HasKernels(gate)) {
      context->save_for_backward({gate, up});
      return Activation::Of(gate).mul_(up);
    }
    const Tensor gate_TF = gate.contiguous(), up_TF = up.contiguous(), y_TF = at::empty_like(gate_TF);
    context->save_for_backward({gate_TF, up_TF});
    const int64_t size = gate_TF.size(-1);
    Parallel(gate_TF.numel() / size, RowGrain(size), [&](int64_t begin, int64_t end) {
      InputRows gate_row(gate_TF), up_row(up_TF);
      OutputRows y_row(y_TF);
      for (int64_t t = begin; t < end; ++t) {
        Activation::kForward(gate_row(t), up_row(t), size, y_row(t));
        y_row.Done(t);
      }
    });
    return y_TF;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &gate_TF = saved[0], &up_TF = saved[1];
    if (!HasKernels(gate_TF)) {
      return {Activation::Gradient(grads[0] * up_TF, gate_TF), Activation::Of(gate_TF).mul_(grads[0])};
    }
    const Tensor dy_TF = grads[0].contiguous(), dgate_TF = at::empty_like(gate_TF), dup_TF = at::empty_like(up_TF);
    const int64_t size = gate_TF.size(-1);
    Parallel(gate_TF.numel() / size, RowGrain(size), [&](int64_t begin, int64_t end) {
      InputRows gate_row(gate_TF), up_row(up_TF), dy_row(dy_TF);
      OutputRows dgate_row(dgate_TF), dup_row(dup_TF);
      for (int64_t t = begin; t < end; ++t) {
        Activation::kBackward(gate_row(t), up_row(t), dy_row(t), size, dgate_row(t), dup_row(t));
        dgate_row.Done(t);
        dup_row.Done(t);
      }
    });
    return {dgate_TF, dup_TF};
  }
};

}  // namespace

Tensor SwiGlu(const Tensor& gate_TF, const Tensor& up_TF) { return GatedUnitFunction<Silu>::apply(gate_TF, up_TF); }

Tensor GeGlu(const Tensor& gate_TF, const Tensor& up_TF) { return GatedUnitFunction<Gelu>::apply(gate_TF, up_TF); }

}  // namespace luthier::ops
