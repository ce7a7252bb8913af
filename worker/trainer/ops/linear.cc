#include "worker/trainer/ops/linear.h"

#include <algorithm>
#include <optional>

#include "worker/trainer/ops/gemm.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Numbers of a weight that exist in fp32 at a time: 16 MB, small beside the activations, and still a fast product.
constexpr int64_t kPanel = int64_t{4} << 20;

bool IsFloat(const Tensor& x) { return x.scalar_type() == at::kFloat; }
bool IsBf16(const Tensor& x) { return x.scalar_type() == at::kBFloat16; }

// Calls use(begin, end, rows as fp32) for panels of a weight, P = end - begin rows each.
template <typename Use>
void ForEachPanel(const Tensor& weight_OI, const Use& use) {
  const int64_t rows = std::max<int64_t>(1, kPanel / std::max<int64_t>(1, weight_OI.size(1)));
  for (int64_t begin = 0; begin < weight_OI.size(0); begin += rows) {
    const int64_t end = std::min(begin + rows, weight_OI.size(0));
    use(begin, end, weight_OI.slice(0, begin, end).to(at::kFloat));
  }
}

// x·Wᵀ in fp32 of bf16 numbers. Needs HasBf16Tiles().
Tensor TilesTimesTransposed(const Tensor& x_TI, const Tensor& weight_OI) {
  const auto matrix = [](const Tensor& of, bool transposed) {
    return Matrix<uint16_t>{static_cast<const uint16_t*>(of.const_data_ptr()), of.size(1), transposed};
  };
  const Tensor x = x_TI.contiguous(), weight = weight_OI.contiguous();
  Tensor y_TO = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  Gemm(x.size(0), weight.size(0), x.size(1), 1, matrix(x, false), matrix(weight, true), 0,
       y_TO.mutable_data_ptr<float>(), y_TO.size(1));
  return y_TO;
}

// Both operands as the processor's bf16 units take them; false if they are not to be used.
bool AsBf16(const Tensor& a, const Tensor& b, Tensor& a16, Tensor& b16) {
  if ((IsFloat(a) && IsFloat(b)) || (a.is_cpu() && !HasBf16Units())) return false;
  a16 = a.to(at::kBFloat16);
  b16 = b.to(at::kBFloat16);
  return true;
}

struct LinearFunction : Function<LinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TI, const Tensor& weight_OI,
                        const std::optional<Tensor>& bias) {
    const Tensor bias_O = bias.value_or(Tensor());
    // Beside a frozen weight only the weight is needed.
    context->save_for_backward({weight_OI.requires_grad() ? x_TI : Tensor(), weight_OI, bias_O});
    if (IsFloat(x_TI) && IsFloat(weight_OI)) return at::linear(x_TI, weight_OI, bias_O);
    Tensor y_TO = TimesTransposed(x_TI, weight_OI, x_TI.scalar_type());
    return bias_O.defined() ? y_TO.add_(bias_O) : y_TO;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TI = saved[0], &weight_OI = saved[1], &bias_O = saved[2], &dy_TO = grads[0];
    Tensor dx_TI, dweight_OI, dbias_O;
    if (context->needs_input_grad(0)) dx_TI = Times(dy_TO, weight_OI, dy_TO.scalar_type());
    if (context->needs_input_grad(1)) dweight_OI = WeightGradient(dy_TO, x_TI, weight_OI.scalar_type());
    if (bias_O.defined() && context->needs_input_grad(2))
      dbias_O = dy_TO.to(at::kFloat).sum(0).to(bias_O.scalar_type());
    return {dx_TI, dweight_OI, dbias_O};
  }
};

}  // namespace

Tensor Linear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& bias_O) {
  // Autograd takes no undefined input.
  return LinearFunction::apply(x_TI, weight_OI, bias_O.defined() ? std::optional<Tensor>(bias_O) : std::nullopt);
}

Tensor TimesTransposed(const Tensor& x_TI, const Tensor& weight_OI, at::ScalarType type) {
  Tensor x16, weight16;
  if (IsFloat(x_TI) && IsFloat(weight_OI)) return at::linear(x_TI, weight_OI).to(type);
  // The bf16 product rounds its result to bf16, except on GPUs, which can be asked for the sums themselves.
  if ((type == at::kBFloat16 || x_TI.is_cuda()) && AsBf16(x_TI, weight_OI, x16, weight16)) {
    return type == at::kBFloat16 ? at::linear(x16, weight16) : at::mm(x16, weight16.t(), type);
  }
  if (x_TI.is_cpu() && IsBf16(x_TI) && IsBf16(weight_OI) && HasBf16Tiles())
    return TilesTimesTransposed(x_TI, weight_OI).to(type);
  const Tensor x = x_TI.to(at::kFloat), y_TO = at::empty({x_TI.size(0), weight_OI.size(0)}, x.options());
  ForEachPanel(weight_OI, [&](int64_t begin, int64_t end, const Tensor& panel_PI) {
    Tensor y_TP = y_TO.slice(1, begin, end);
    at::mm_out(y_TP, x, panel_PI.t());
  });
  return y_TO.to(type);
}

Tensor Times(const Tensor& dy_TO, const Tensor& weight_OI, at::ScalarType type) {
  Tensor dy16, weight16;
  if (IsFloat(dy_TO) && IsFloat(weight_OI)) return at::mm(dy_TO, weight_OI).to(type);
  if (AsBf16(dy_TO, weight_OI, dy16, weight16)) return at::mm(dy16, weight16).to(type);
  const Tensor dy = dy_TO.to(at::kFloat);
  Tensor dx_TI = at::zeros({dy_TO.size(0), weight_OI.size(1)}, dy.options());
  ForEachPanel(weight_OI, [&](int64_t begin, int64_t end, const Tensor& panel_PI) {
    dx_TI.addmm_(dy.slice(1, begin, end), panel_PI, /*beta=*/begin == 0 ? 0 : 1);
  });
  return dx_TI.to(type);
}

Tensor WeightGradient(const Tensor& dy_TO, const Tensor& x_TI, at::ScalarType type) {
  Tensor dy16, x16;
  if (AsBf16(dy_TO, x_TI, dy16, x16)) return at::mm(dy16.t(), x16).to(type);
  return at::mm(dy_TO.to(at::kFloat).t(), x_TI.to(at::kFloat)).to(type);
}

void AddTimes(const Tensor& x_TI, const Tensor& weight_IO, double scale, Tensor& y_TO) {
  Tensor x16, weight16;
  if (IsFloat(y_TO)) {
    y_TO.addmm_(x_TI.to(at::kFloat), weight_IO.to(at::kFloat), 1, scale);
  } else if (AsBf16(x_TI, weight_IO, x16, weight16)) {
    y_TO.addmm_(x16, weight16, 1, scale);
  } else {
    y_TO.copy_(y_TO.to(at::kFloat).addmm_(x_TI.to(at::kFloat), weight_IO.to(at::kFloat), 1, scale));
  }
}

void AddWeightGradient(const Tensor& dy_TO, const Tensor& x_TI, Tensor& dweight_OI) {
  if (IsFloat(dy_TO) && IsFloat(x_TI) && IsFloat(dweight_OI)) {
    dweight_OI.addmm_(dy_TO.t(), x_TI);
  } else {
    dweight_OI.add_(WeightGradient(dy_TO, x_TI, dweight_OI.scalar_type()));
  }
}

bool HasBf16Units() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}

}  // namespace luthier::ops
