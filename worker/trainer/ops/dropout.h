#pragma once

#include <cstdint>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// The seed of a dropout mask, from torch's generator, whose state is part of every checkpoint. A mask is a function of
// its seed (kernels.h), so the backward pass forms it again instead of keeping it.
int64_t DrawMaskSeed();

// x with the share `drop` of its numbers 0 and the others divided by 1 - drop; `x` itself if drop is 0.
Tensor Dropped(const Tensor& x_TI, int64_t seed, double drop);

// The same under recorded autograd, with a seed of its own. Nothing is drawn from a GPU's generator, whose state would
// have to be part of checkpoints.
Tensor Dropout(const Tensor& x, double drop);

}  // namespace luthier::ops
