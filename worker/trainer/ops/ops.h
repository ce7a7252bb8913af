// The hot operations of the forward pass, each with an explicit backward that saves less, or runs fewer passes, than recorded
// autograd would. ops/reference.h holds the plain forms that tests compare them with.
//
// Shape suffixes, here and in models/:
//   T tokens of a micro-batch (documents end to end, no padding)   D hidden size    F intermediate size   V vocabulary
//   N query heads   K key/value heads   H head size   R rank of an adapter   I inputs, O outputs of a linear layer
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// x · rsqrt(mean(x²) + eps) · weight over the last axis, statistics in fp32 (arXiv:1910.07467).
Tensor RmsNorm(const Tensor& x_TD, const Tensor& weight_D, double eps);

// Cosines and sines of each position, fp32. The two halves of a head form the pairs, as in the Hugging Face checkpoints.
struct RotaryTable {
  Tensor cos_TP;  // P = H / 2 pairs
  Tensor sin_TP;
};

// Rotates each pair (x_i, x_{i+H/2}) by its position's angle (arXiv:2104.09864).
Tensor Rotary(const Tensor& x_TNH, const RotaryTable& table);

// silu(gate) · up (arXiv:2002.05202).
Tensor SwiGlu(const Tensor& gate_TF, const Tensor& up_TF);

// x·Wᵀ + scale · (x·Aᵀ)·Bᵀ with W frozen (arXiv:2106.09685). Keeps x and x·Aᵀ for the backward pass, never x·Wᵀ.
// `dropout` in [0, 1) drops inputs of the adapter only, with a mask drawn from torch's generator.
Tensor LoraLinear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI, const Tensor& b_OR, double scale,
                  double dropout);

// Token ranges [begin, end) of the documents of a micro-batch, in order.
using Documents = std::vector<std::pair<int64_t, int64_t>>;

// Causal attention inside each document, scaled by 1/sqrt(H); grouped-query heads share keys and values (arXiv:2305.13245).
Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents);

// Rows and labels in pieces whose logits may exist at the same time.
std::vector<std::pair<Tensor, Tensor>> HeadChunks(const Tensor& h_TD, const Tensor& labels_T);

// Sum of next-token cross-entropies, in nats: logits are h·Wᵀ of the rows given, which should be the trained ones only.
// Logits exist for a chunk of rows at a time; their gradient is formed in place during the forward pass.
Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T);

}  // namespace luthier::ops
