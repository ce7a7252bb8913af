// Numbers next to zero.
#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Numbers below 1.2e-38 count as 0, in this thread and in those that it starts. They arise in the gradients of tokens
// far from a trained one, and processors compute them by microcode (the gradient of SwiGLU: 9 instead of 0.5 ns a
// number). Call it first in main.
inline void FlushSubnormals() { at::globalContext().setFlushDenormal(true); }

}  // namespace luthier::ops
