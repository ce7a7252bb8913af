#pragma once

#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// A frozen weight and the adapter beside it: x·Wᵀ + scale · (x·Aᵀ)·Bᵀ (arXiv:2106.09685). A and B may be undefined: no
// adapter.
struct LoraLayer {
  Tensor weight_OI, a_RI, b_OR;
  double scale = 0;
};

// Layers of one input x_TI → y_TO of each; one of them at least has an adapter. For all adapters x is read once, and
// its gradient is one sum. Keeps x and x·Aᵀ for the backward pass, never x·Wᵀ. `dropout` in [0, 1) drops inputs of the
// adapters only, with one mask for all of them drawn from torch's generator.
std::vector<Tensor> LoraLinears(const Tensor& x_TI, const std::vector<LoraLayer>& layers, double dropout);

}  // namespace luthier::ops
