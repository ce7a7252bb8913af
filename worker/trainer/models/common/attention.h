// How a forward pass attends: over the documents of a micro-batch in training, over a key/value cache in generation.
#pragma once

#include <cstdint>

#include "worker/trainer/ops/ops.h"
#include "worker/trainer/torch.h"

namespace luthier {

// Mixes the tokens of one layer. Queries and keys are already rotated.
class Attention {
 public:
  virtual ~Attention() = default;
  // q_TNH, k_TKH, v_TKH → [T, N, H].
  virtual Tensor Attend(int64_t layer, const ops::AttentionForm& form, const Tensor& q_TNH, const Tensor& k_TKH,
                        const Tensor& v_TKH) = 0;
};

// Causal within each document.
class DocumentAttention : public Attention {
 public:
  explicit DocumentAttention(ops::Documents documents) : documents_(std::move(documents)) {}
  Tensor Attend(int64_t, const ops::AttentionForm& form, const Tensor& q_TNH, const Tensor& k_TKH,
                const Tensor& v_TKH) override {
    return ops::PackedAttention(q_TNH, k_TKH, v_TKH, documents_, form);
  }

 private:
  ops::Documents documents_;
};

}  // namespace luthier
