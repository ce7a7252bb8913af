#pragma once

#include <utility>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// How logits come from hidden states: cap · tanh(scale · h·Wᵀ / cap).
struct LogitForm {
  double scale = 1;
  double softcap = 0;  // 0: logits are scale · h·Wᵀ
};

// The logits that `raw_TV` = h·Wᵀ become. No explicit backward: for checks, generation and short inputs.
Tensor ApplyLogitForm(const Tensor& raw_TV, const LogitForm& form);

// Rows and labels in pieces whose logits may exist at the same time.
std::vector<std::pair<Tensor, Tensor>> HeadChunks(const Tensor& h_TD, const Tensor& labels_T);

// Sum of next-token cross-entropies, in nats: logits are those of the rows given, which should be the trained ones
// only. Logits exist for a chunk of rows at a time; their gradient is formed in place during the forward pass.
// `losses`, if given and empty, receives the terms of the sum.
Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T, const LogitForm& form = {},
                       std::vector<double>* losses = nullptr);

}  // namespace luthier::ops
