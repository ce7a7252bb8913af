// A micro-batch on the device, and its loss.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/trainer/models/model.h"
#include "worker/trainer/ops/ops.h"

namespace luthier {

// Token ids of one document and, for each of its tokens, whether it is trained (its prediction from the token before counts).
struct Document {
  std::vector<int32_t> tokens;
  std::vector<bool> trained;
};

// Documents end to end, without padding.
struct MicroBatch {
  Tensor tokens_T;     // int64
  Tensor positions_T;  // int64, restarting at 0 in every document
  ops::Documents documents;
  Tensor predicting_rows;  // int64 rows t whose next token t + 1 is trained
  Tensor labels;           // int64, the tokens that those rows predict

  int64_t size() const { return tokens_T.size(0); }
  int64_t trained_tokens() const { return labels.size(0); }
};

MicroBatch MakeMicroBatch(const std::vector<const Document*>& documents, at::Device device);

// Sum of the cross-entropies of the trained tokens, in nats; only they go through the head.
// Everything goes through adapter 0 where the model has adapters.
Tensor SumLoss(const DecoderModel& model, const MicroBatch& batch);

// Logits of every token, [T, V], for checks and short prompts only.
Tensor Logits(const DecoderModel& model, const MicroBatch& batch);

}  // namespace luthier
