#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Token ranges [begin, end) of the documents of a micro-batch, in order.
using Documents = std::vector<std::pair<int64_t, int64_t>>;

// What distinguishes one family's attention from another's. Scores are scaled, then capped, then masked.
struct AttentionForm {
  double scale = 1;    // on q·k; most families: 1/sqrt(H)
  int64_t window = 0;  // a query sees itself and the window - 1 keys before it; 0: every key before it
  double softcap = 0;  // scores become cap · tanh(score / cap) (arXiv:2408.00118); 0: they stay
  // Of attention weights, only while gradients are recorded; the mask is drawn from torch's generator.
  double dropout = 0;
};

// Causal attention inside each document; grouped-query heads share keys and values (arXiv:2305.13245).
Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents,
                       const AttentionForm& form);

// One new token a row against its cached keys and values. Row b sees the cache's positions up to and including
// positions_B[b], where its own key lies, as far as the window reaches. Without gradients. → [B, N, H].
Tensor CachedAttention(const Tensor& q_BNH, const Tensor& keys_BKSH, const Tensor& values_BKSH,
                       const Tensor& positions_B, const AttentionForm& form);

}  // namespace luthier::ops
