#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// silu(gate) · up (arXiv:2002.05202).
Tensor SwiGlu(const Tensor& gate_TF, const Tensor& up_TF);

}  // namespace luthier::ops
