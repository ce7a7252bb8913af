#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// x·Wᵀ + scale · (x·Aᵀ)·Bᵀ with W frozen (arXiv:2106.09685). Keeps x and x·Aᵀ for the backward pass, never x·Wᵀ.
// `dropout` in [0, 1) drops inputs of the adapter only, with a mask drawn from torch's generator.
Tensor LoraLinear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI, const Tensor& b_OR, double scale,
                  double dropout);

}  // namespace luthier::ops
