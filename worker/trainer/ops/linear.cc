#include "worker/trainer/ops/linear.h"

#include <algorithm>
#include <optional>

#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/tiles.h"

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

bool OnTiles(const Tensor& a, const Tensor& b) {
  return HasKernels(a) && HasBf16Products() && !(IsFloat(a) && IsFloat(b));
}

// Both operands of a product, kept while it is computed.
struct Operands {
  Tensor left_MK, right_KN;

  Operands(const Tensor& left, const Tensor& right) : left_MK(InPlace(left)), right_KN(InPlace(right)) {
    TORCH_CHECK(left.size(1) == right.size(0), "a product of ", left.sizes(), " and ", right.sizes());
  }
  Product product() const { return {left_MK.size(1), MatrixOf(left_MK), MatrixOf(right_KN)}; }

 private:
  static bool HasRows(const Tensor& x) { return x.stride(1) == 1 && x.stride(0) >= x.size(1); }
  static Tensor InPlace(const Tensor& x) {
    const Tensor x16 = x.to(at::kBFloat16);
    return HasRows(x16) || HasRows(x16.t()) ? x16 : x16.contiguous();
  }
  static Matrix<uint16_t> MatrixOf(const Tensor& x) {
    const auto* data = static_cast<const uint16_t*>(x.const_data_ptr());
    return HasRows(x) ? Matrix<uint16_t>{data, x.stride(0)} : Matrix<uint16_t>{data, x.stride(1), true};
  }
};

// The sum of products in `type`, rounded once.
Tensor SumOnTiles(const std::vector<Operands>& operands, at::ScalarType type) {
  const int64_t m = operands[0].left_MK.size(0), n = operands[0].right_KN.size(1);
  TORCH_CHECK(operands.size() <= kMostTerms, operands.size(), " products in a sum");
  std::vector<Product> products;
  for (const Operands& each : operands) {
    TORCH_CHECK(each.left_MK.size(0) == m && each.right_KN.size(1) == n, "products of different shapes in a sum");
    products.push_back(each.product());
  }
  const bool is_bf16 = type == at::kBFloat16;
  const Tensor sum_MN = at::empty({m, n}, operands[0].left_MK.options().dtype(is_bf16 ? at::kBFloat16 : at::kFloat));
  if (is_bf16) {
    ParallelMultiply(m, n, products, Result<uint16_t>{static_cast<uint16_t*>(sum_MN.mutable_data_ptr()), n});
  } else {
    ParallelMultiply(m, n, products, Result<float>{sum_MN.mutable_data_ptr<float>(), n});
  }
  return sum_MN.to(type);
}

// Both operands as the processor's bf16 units take them; false if they are not to be used.
bool AsBf16(const Tensor& a, const Tensor& b, Tensor& a16, Tensor& b16) {
  if ((IsFloat(a) && IsFloat(b)) || (a.is_cpu() && !HasBf16Products())) return false;
  a16 = a.to(at::kBFloat16);
  b16 = b.to(at::kBFloat16);
  return true;
}

// x·Wᵀ in `type` by LibTorch.
Tensor OneTimesTransposed(const Tensor& x_TI, const Tensor& weight_OI, at::ScalarType type) {
  Tensor x16, weight16;
  if (IsFloat(x_TI) && IsFloat(weight_OI)) return at::linear(x_TI, weight_OI).to(type);
  if ((type == at::kBFloat16 || x_TI.is_cuda()) && AsBf16(x_TI, weight_OI, x16, weight16))
    return type == at::kBFloat16 ? at::linear(x16, weight16) : at::mm(x16, weight16.t(), type);
  const Tensor x = x_TI.to(at::kFloat), y_TO = at::empty({x_TI.size(0), weight_OI.size(0)}, x.options());
  ForEachPanel(weight_OI, [&](int64_t begin, int64_t end, const Tensor& panel_PI) {
    Tensor y_TP = y_TO.slice(1, begin, end);
    at::mm_out(y_TP, x, panel_PI.t());
  });
  return y_TO.to(type);
}

// dy·W in `type` by LibTorch.
Tensor OneTimes(const Tensor& dy_TO, const Tensor& weight_OI, at::ScalarType type) {
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

// y_TO += x·W, rounded once.
void AddTimes(const Tensor& x_TI, const Tensor& weight_IO, Tensor& y_TO) {
  Tensor x16, weight16;
  if (IsFloat(y_TO) && IsFloat(weight_IO)) {
    y_TO.addmm_(x_TI.to(at::kFloat), weight_IO);
  } else if (IsBf16(y_TO) && AsBf16(x_TI, weight_IO, x16, weight16)) {
    y_TO.addmm_(x16, weight16);
  } else {
    y_TO.copy_(OneTimes(x_TI, weight_IO, at::kFloat).add_(y_TO));
  }
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

Tensor TimesTransposed(const Tensor& x_TI, const Tensor& weight_OI, at::ScalarType type,
                       absl::Span<const Addend> also) {
  // The bf16 product of LibTorch rounds its result to bf16, except on GPUs, which can be asked for the sums themselves.
  const bool both_bf16 = IsBf16(x_TI) && IsBf16(weight_OI);
  if (OnTiles(x_TI, weight_OI) && (type == at::kBFloat16 || both_bf16)) {
    std::vector<Operands> operands = {{x_TI, weight_OI.t()}};
    for (const Addend& each : also) operands.emplace_back(each.left, each.right.t());
    return SumOnTiles(operands, type);
  }
  Tensor y_TO = OneTimesTransposed(x_TI, weight_OI, type);
  for (const Addend& each : also) AddTimes(each.left, each.right.t(), y_TO);
  return y_TO;
}

Tensor Times(const Tensor& dy_TO, const Tensor& weight_OI, at::ScalarType type, absl::Span<const Addend> also) {
  if (OnTiles(dy_TO, weight_OI)) {
    std::vector<Operands> operands = {{dy_TO, weight_OI}};
    for (const Addend& each : also) operands.emplace_back(each.left, each.right);
    return SumOnTiles(operands, type);
  }
  Tensor dx_TI = OneTimes(dy_TO, weight_OI, type);
  for (const Addend& each : also) AddTimes(each.left, each.right, dx_TI);
  return dx_TI;
}

Tensor WeightGradient(const Tensor& dy_TO, const Tensor& x_TI, at::ScalarType type) {
  if (OnTiles(dy_TO, x_TI)) return SumOnTiles({{dy_TO.t(), x_TI}}, type);
  Tensor dy16, x16;
  if (AsBf16(dy_TO, x_TI, dy16, x16)) return at::mm(dy16.t(), x16).to(type);
  return at::mm(dy_TO.to(at::kFloat).t(), x_TI.to(at::kFloat)).to(type);
}

void AddWeightGradient(const Tensor& dy_TO, const Tensor& x_TI, Tensor& dweight_OI) {
  if (IsFloat(dy_TO) && IsFloat(x_TI) && IsFloat(dweight_OI)) {
    dweight_OI.addmm_(dy_TO.t(), x_TI);
  } else {
    dweight_OI.add_(WeightGradient(dy_TO, x_TI, dweight_OI.scalar_type()));
  }
}

}  // namespace luthier::ops
