#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// x · rsqrt(mean(x²) + eps) · weight over the last axis, statistics in fp32 (arXiv:1910.07467).
Tensor RmsNorm(const Tensor& x_TD, const Tensor& weight_D, double eps);

}  // namespace luthier::ops
