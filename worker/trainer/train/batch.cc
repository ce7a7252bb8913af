#include "worker/trainer/train/batch.h"

#include "worker/trainer/models/common/attention.h"

namespace luthier {
namespace {

Tensor HiddenStates(const DecoderModel& model, const PackedBatch& batch) {
  DocumentAttention attention(batch.documents);
  return model.Forward(batch.tokens_T, batch.positions_T, attention, {{0, 0, batch.size()}});
}

}  // namespace

PackedBatch MakePackedBatch(const std::vector<const Example*>& documents, at::Device device) {
  std::vector<int64_t> tokens, positions, predicting, labels;
  ops::Documents ranges;
  for (const Example* document : documents) {
    const auto begin = static_cast<int64_t>(tokens.size());
    const auto length = static_cast<int64_t>(document->ids.size());
    if (length == 0) continue;
    for (int64_t t = 0; t < length; ++t) {
      tokens.push_back(document->ids[static_cast<size_t>(t)]);
      positions.push_back(t);
      // A document's first token is predicted by nothing, so its mark has no effect.
      if (t + 1 < length && document->trained[static_cast<size_t>(t + 1)]) {
        predicting.push_back(begin + t);
        labels.push_back(document->ids[static_cast<size_t>(t + 1)]);
      }
    }
    ranges.emplace_back(begin, begin + length);
  }
  const auto on_device = [&](const std::vector<int64_t>& values) { return at::tensor(values, at::kLong).to(device); };
  return {on_device(tokens), on_device(positions), std::move(ranges), on_device(predicting), on_device(labels)};
}

Tensor SumLoss(const DecoderModel& model, const PackedBatch& batch) {
  const Tensor h_TD = HiddenStates(model, batch);
  return ops::SumCrossEntropy(h_TD.index_select(0, batch.predicting_rows), model.head_VD(), batch.labels);
}

TokenScore ScoreTrainedTokens(const DecoderModel& model, const PackedBatch& batch) {
  at::NoGradGuard no_grad;
  const Tensor h_TD = HiddenStates(model, batch).index_select(0, batch.predicting_rows);
  TokenScore score{ops::SumCrossEntropy(h_TD, model.head_VD(), batch.labels).item<double>(), 0, batch.trained_tokens()};
  for (const auto& [h_CD, labels_C] : ops::HeadChunks(h_TD, batch.labels)) {
    score.right += (at::linear(h_CD, model.head_VD()).argmax(-1) == labels_C).sum().item<int64_t>();
  }
  return score;
}

Tensor Logits(const DecoderModel& model, const PackedBatch& batch) {
  return at::linear(HiddenStates(model, batch), model.head_VD());
}

}  // namespace luthier
