#pragma once

#include <functional>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// f(x) without what `f` computes in between being kept: the backward pass computes it again (arXiv:1604.06174) and
// draws the same random numbers. Parameters inside `f` get their gradients also where `x` needs none. Whatever `f`
// refers to must live until then.
Tensor Recomputed(const std::function<Tensor(const Tensor&)>& f, const Tensor& x);

}  // namespace luthier::ops
