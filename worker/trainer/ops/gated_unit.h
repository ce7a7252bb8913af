#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// silu(gate) · up (arXiv:2002.05202).
Tensor SwiGlu(const Tensor& gate_TF, const Tensor& up_TF);

// gelu(gate) · up with the tanh approximation of gelu (arXiv:2002.05202, 1606.08415).
Tensor GeGlu(const Tensor& gate_TF, const Tensor& up_TF);

}  // namespace luthier::ops
