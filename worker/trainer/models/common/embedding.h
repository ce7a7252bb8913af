// The embedding: a row of a matrix for each token, with the adapters that it carries.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/torch.h"

namespace luthier {

class Embedding {
 public:
  // A row is multiplied by `scale`; that of `padding_token` gets no gradient, and neither does its column of an
  // adapter's A. `adapters` (none, or as many as the model has) are those of the linear layer whose weight is weight_VD
  // transposed; nothing of their input is dropped, since a token is there or not.
  Embedding(Tensor weight_VD, double scale, std::optional<int64_t> padding_token, std::vector<LoraWeights> adapters)
      : weight_VD_(std::move(weight_VD)),
        scale_(scale),
        padding_token_(padding_token.value_or(kNoPadding)),
        adapters_(std::move(adapters)) {}

  // tokens_T → x_TD in `type`, by default that of the weight.
  Tensor operator()(const Tensor& tokens_T, const AdapterSlices& slices, std::optional<at::ScalarType> type) const;

  at::Device device() const { return weight_VD_.device(); }

 private:
  Tensor Rows(const Tensor& tokens_T, std::optional<at::ScalarType> type) const;
  Tensor Adapted(const Tensor& x_TD, const Tensor& tokens_T, const LoraWeights& lora) const;

  static constexpr int64_t kNoPadding = -1;  // at::embedding's

  Tensor weight_VD_;
  double scale_;
  int64_t padding_token_;
  std::vector<LoraWeights> adapters_;
};

}  // namespace luthier
