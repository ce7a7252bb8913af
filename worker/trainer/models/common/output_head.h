// The output layer: logits, and the loss without ever holding all of them.
#pragma once

#include <memory>
#include <vector>

#include "lib/checkpoint/model_config.h"
#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/ops/loss_head.h"

namespace luthier {

class OutputHead {
 public:
  OutputHead(std::unique_ptr<Linear> linear, const ops::LogitForm& form) : linear_(std::move(linear)), form_(form) {}

  // Of every row given, through adapter `adapter` where the head has adapters: h_TD → [T, V] in fp32, since in bf16
  // many tokens would share the highest value.
  Tensor Logits(const Tensor& h_TD, size_t adapter) const;

  // Sum of the cross-entropies of `labels_T` in nats. `losses`, if given and empty, receives its terms.
  Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& labels_T, size_t adapter,
                         std::vector<double>* losses = nullptr) const;

 private:
  std::unique_ptr<Linear> linear_;
  ops::LogitForm form_;
};

}  // namespace luthier
