// A micro-batch (lib/dataset/batches.h) as tensors, and its loss.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/dataset/encode.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/ops/ops.h"

namespace luthier {

// Documents end to end, without padding.
struct PackedBatch {
  Tensor tokens_T;     // int64
  Tensor positions_T;  // int64, restarting at 0 in every document
  Tensor lengths_T;    // int64, length of the document that each token belongs to
  ops::Documents documents;
  Tensor predicting_rows;  // int64 rows t whose next token t + 1 is trained
  Tensor labels;           // int64, the tokens that those rows predict

  int64_t size() const { return tokens_T.size(0); }
  int64_t trained_tokens() const { return labels.size(0); }
};

// Empty documents are left out.
PackedBatch MakePackedBatch(const std::vector<const Example*>& documents, at::Device device);

// Sum of the cross-entropies of the trained tokens, in nats; only they go through the head. Everything goes through
// adapter 0 where the model has adapters. `losses`, if given and empty, receives the terms of the sum, in the order of
// batch.labels.
Tensor SumLoss(const DecoderModel& model, const PackedBatch& batch, std::vector<double>* losses = nullptr);

// Loss and first choices of the trained tokens, without gradients.
struct TokenScore {
  double loss_sum = 0;  // nats
  int64_t right = 0;    // tokens that are the most probable one
  int64_t tokens = 0;
};
TokenScore ScoreTrainedTokens(const DecoderModel& model, const PackedBatch& batch);

// Logits of the tokens at `rows_N` (int64), [N, V]; for checks and short prompts also of every token, [T, V].
Tensor Logits(const DecoderModel& model, const PackedBatch& batch, const Tensor& rows_N);
Tensor Logits(const DecoderModel& model, const PackedBatch& batch);

}  // namespace luthier
