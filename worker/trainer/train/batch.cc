#include "worker/trainer/train/batch.h"

#include <memory>

#include "worker/trainer/models/common/attention.h"

namespace luthier {
namespace {

Tensor HiddenStates(const DecoderModel& model, const PackedBatch& batch) {
  return model.Forward(batch.tokens_T, batch.positions_T, batch.lengths_T,
                       std::make_shared<DocumentAttention>(batch.documents), {{0, 0, batch.size()}});
}

}  // namespace

PackedBatch MakePackedBatch(const std::vector<const Example*>& documents, at::Device device) {
  std::vector<int64_t> tokens, positions, lengths, predicting, labels;
  ops::Documents ranges;
  for (const Example* document : documents) {
    const auto begin = static_cast<int64_t>(tokens.size());
    const auto length = static_cast<int64_t>(document->ids.size());
    if (length == 0) continue;
    for (int64_t t = 0; t < length; ++t) {
      tokens.push_back(document->ids[static_cast<size_t>(t)]);
      positions.push_back(t);
      lengths.push_back(length);
      // A document's first token is predicted by nothing, so its mark has no effect.
      if (t + 1 < length && document->trained[static_cast<size_t>(t + 1)]) {
        predicting.push_back(begin + t);
        labels.push_back(document->ids[static_cast<size_t>(t + 1)]);
      }
    }
    ranges.emplace_back(begin, begin + length);
  }
  const auto on_device = [&](const std::vector<int64_t>& values) { return at::tensor(values, at::kLong).to(device); };
  return {on_device(tokens), on_device(positions),  on_device(lengths),
          std::move(ranges), on_device(predicting), on_device(labels)};
}

Tensor SumLoss(const DecoderModel& model, const PackedBatch& batch, std::vector<double>* losses) {
  const Tensor h_TD = HiddenStates(model, batch);
  return model.head().SumCrossEntropy(h_TD.index_select(0, batch.predicting_rows), batch.labels, /*adapter=*/0, losses);
}

TokenScore ScoreTrainedTokens(const DecoderModel& model, const PackedBatch& batch) {
  at::NoGradGuard no_grad;
  const Tensor h_TD = HiddenStates(model, batch).index_select(0, batch.predicting_rows);
  TokenScore score{model.head().SumCrossEntropy(h_TD, batch.labels, /*adapter=*/0).item<double>(), 0,
                   batch.trained_tokens()};
  for (const auto& [h_CD, labels_C] : ops::HeadChunks(h_TD, batch.labels)) {
    score.right += (model.head().Logits(h_CD, /*adapter=*/0).argmax(-1) == labels_C).sum().item<int64_t>();
  }
  return score;
}

Tensor Logits(const DecoderModel& model, const PackedBatch& batch, const Tensor& rows_N) {
  return model.head().Logits(HiddenStates(model, batch).index_select(0, rows_N), /*adapter=*/0);
}

Tensor Logits(const DecoderModel& model, const PackedBatch& batch) {
  return model.head().Logits(HiddenStates(model, batch), /*adapter=*/0);
}

}  // namespace luthier
