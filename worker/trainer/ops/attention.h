#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Token ranges [begin, end) of the documents of a micro-batch, in order.
using Documents = std::vector<std::pair<int64_t, int64_t>>;

// Causal attention inside each document, scaled by 1/sqrt(H); grouped-query heads share keys and values (arXiv:2305.13245).
Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents);

}  // namespace luthier::ops
