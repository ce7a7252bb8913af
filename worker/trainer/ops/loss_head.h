#pragma once

#include <utility>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier::ops {

// Rows and labels in pieces whose logits may exist at the same time.
std::vector<std::pair<Tensor, Tensor>> HeadChunks(const Tensor& h_TD, const Tensor& labels_T);

// Sum of next-token cross-entropies, in nats: logits are h·Wᵀ of the rows given, which should be the trained ones only.
// Logits exist for a chunk of rows at a time; their gradient is formed in place during the forward pass.
Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T);

}  // namespace luthier::ops
