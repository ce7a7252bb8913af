#pragma once

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Cosines and sines of each position, fp32. The two halves of a head form the pairs, as in the Hugging Face
// checkpoints.
struct RotaryTable {
  Tensor cos_TP;  // P = H / 2 pairs
  Tensor sin_TP;
};

// Rotates each pair (x_i, x_{i+H/2}) by its position's angle (arXiv:2104.09864).
Tensor Rotary(const Tensor& x_TNH, const RotaryTable& table);

}  // namespace luthier::ops
