#pragma once

#include "absl/types/span.h"
#include "worker/trainer/torch.h"

namespace luthier::ops {

// x·Wᵀ + b in the format of x, with explicit backward. W and b may be wider than x: fp32 weights of a model that
// computes in bf16. An undefined b is none.
Tensor Linear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& bias_O);

// A product that is added to another one: before the sum is rounded where products are our own (tiles.h), after that
// elsewhere. `right` lies as the right operand of the other one. At most three are added.
struct Addend {
  Tensor left, right;
};

// The matrix products behind it, for operations with a backward of their own. Operands may be fp32 or bf16; sums are
// fp32. Where the device multiplies bf16, products with a bf16 operand are computed so; elsewhere by way of fp32, a
// panel of the weights at a time. x_TI·Wᵀ → [T, O] in `type`. In fp32 it is not rounded in between, so a processor
// multiplies bf16 for it only where both operands have that.
Tensor TimesTransposed(const Tensor& x_TI, const Tensor& weight_OI, at::ScalarType type,
                       absl::Span<const Addend> also = {});
// dy_TO·W → [T, I] in `type`; a GPU rounds it to bf16.
Tensor Times(const Tensor& dy_TO, const Tensor& weight_OI, at::ScalarType type, absl::Span<const Addend> also = {});
// dyᵀ·x → [O, I] in `type`: the gradient of a weight; a GPU rounds it to bf16.
Tensor WeightGradient(const Tensor& dy_TO, const Tensor& x_TI, at::ScalarType type);
// The same as WeightGradient, added to what is there.
void AddWeightGradient(const Tensor& dy_TO, const Tensor& x_TI, Tensor& dweight_OI);

}  // namespace luthier::ops
