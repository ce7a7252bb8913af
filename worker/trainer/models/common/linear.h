// Linear layers. The builder chooses plain or LoRA once; a forward pass never asks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "worker/trainer/ops/lora_linear.h"
#include "worker/trainer/torch.h"

namespace luthier {

// Which adapter owns which tokens of a micro-batch: jobs that share a base train in one forward pass.
struct AdapterSlice {
  size_t adapter;
  int64_t begin;  // tokens [begin, end)
  int64_t end;
};
using AdapterSlices = std::vector<AdapterSlice>;

// adapted(tokens of a slice, number of its adapter) of every slice, end to end. `x` holds a row, or a number, a token.
template <typename Adapted>
Tensor InSlices(const Tensor& x, const AdapterSlices& slices, const Adapted& adapted) {
  if (slices.size() == 1) return adapted(x, slices[0].adapter);
  std::vector<Tensor> parts;
  for (const AdapterSlice& slice : slices) parts.push_back(adapted(x.slice(0, slice.begin, slice.end), slice.adapter));
  return at::cat(parts);
}

// x_TI → y_TO.
class Linear {
 public:
  // The bias may be undefined.
  Linear(Tensor weight_OI, Tensor bias_O) : weight_OI_(std::move(weight_OI)), bias_O_(std::move(bias_O)) {}
  virtual ~Linear() = default;
  virtual Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const = 0;

  // The layer without its bias as one plain product, for an operation that multiplies by itself: x'_TJ and w'_OJ whose
  // x'·w'ᵀ is what adapter `adapter` computes. Gradients flow through both.
  virtual std::pair<Tensor, Tensor> AsProduct(const Tensor& x_TI, size_t adapter) const = 0;

 protected:
  // The layer without its bias as a frozen weight and what adapter `adapter` adds, if that is all it is.
  virtual std::optional<ops::LoraLayer> AsLoraLayer(size_t adapter) const = 0;
  Tensor WithBias(Tensor y_TO) const { return bias_O_.defined() ? y_TO.add_(bias_O_) : y_TO; }
  friend std::vector<Tensor> Together(const Tensor& x_TI, const AdapterSlices& slices,
                                      const std::vector<const Linear*>& layers);

  Tensor weight_OI_;
  Tensor bias_O_;
};

// What each of some layers of one input computes, as queries, keys and values: together where they allow it, which is
// faster (ops::LoraLinears).
std::vector<Tensor> Together(const Tensor& x_TI, const AdapterSlices& slices, const std::vector<const Linear*>& layers);

// x·Wᵀ + b.
class PlainLinear : public Linear {
 public:
  using Linear::Linear;
  Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const override;
  std::pair<Tensor, Tensor> AsProduct(const Tensor& x_TI, size_t) const override { return {x_TI, weight_OI_}; }

 protected:
  std::optional<ops::LoraLayer> AsLoraLayer(size_t adapter) const override;
};

// One adapter of one linear layer. Undefined tensors mean that this adapter leaves the layer as it is.
struct LoraWeights {
  Tensor a_RI;
  Tensor b_OR;
  double scale = 0;
  double dropout = 0;
  Tensor magnitude_O;  // DoRA: the length of each row of the adapted weight; undefined in plain LoRA
};

// x·(W + scale·B·A)ᵀ + b with W and b frozen; each slice of tokens through its own adapter. Slices cover the tokens in
// order. With a magnitude, rows of W + scale·B·A are brought to that length (DoRA, arXiv:2402.09353).
class LoraLinear : public Linear {
 public:
  LoraLinear(Tensor weight_OI, Tensor bias_O, std::vector<LoraWeights> adapters)
      : Linear(std::move(weight_OI), std::move(bias_O)), adapters_(std::move(adapters)) {}
  Tensor operator()(const Tensor& x_TI, const AdapterSlices& slices) const override;
  std::pair<Tensor, Tensor> AsProduct(const Tensor& x_TI, size_t adapter) const override;

 protected:
  std::optional<ops::LoraLayer> AsLoraLayer(size_t adapter) const override;

 private:
  Tensor Adapted(const Tensor& x_TI, const LoraWeights& lora) const;
  Tensor Dora(const Tensor& x_TI, const LoraWeights& lora, double dropout) const;

  std::vector<LoraWeights> adapters_;
};

// magnitude / |row of W + scale·B·A|, one factor a row. The length of the rows counts as a constant: no gradient flows
// into it (section 4.3 of the paper).
Tensor DoraFactors(const Tensor& weight_OI, const LoraWeights& lora);

}  // namespace luthier
