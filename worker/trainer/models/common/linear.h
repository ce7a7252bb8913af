// Linear layers. The builder chooses plain or LoRA once; a forward pass never asks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier {

// Which adapter owns which tokens of a micro-batch: jobs that share a base train in one forward pass.
struct AdapterSlice {
  size_t adapter;
  int64_t begin;  // tokens [begin, end)
  int64_t end;
};
using AdapterSlices = std::vector<AdapterSlice>;

// x_TI → y_TO.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const = 0;
};

// x·Wᵀ.
class PlainLinear : public Linear {
 public:
  explicit PlainLinear(Tensor weight_OI) : weight_OI_(std::move(weight_OI)) {}
  Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const override;

 private:
  Tensor weight_OI_;
};

// One adapter of one linear layer. Undefined tensors mean that this adapter leaves the layer as it is.
struct LoraWeights {
  Tensor a_RI;
  Tensor b_OR;
  double scale = 0;
  double dropout = 0;
};

// x·Wᵀ + scale·(x·Aᵀ)·Bᵀ with W frozen; each slice of tokens through its own adapter. Slices cover the tokens in order.
class LoraLinear : public Linear {
 public:
  LoraLinear(Tensor weight_OI, std::vector<LoraWeights> adapters)
      : weight_OI_(std::move(weight_OI)), adapters_(std::move(adapters)) {}
  Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const override;

 private:
  Tensor weight_OI_;
  std::vector<LoraWeights> adapters_;
};

}  // namespace luthier
