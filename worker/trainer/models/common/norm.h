// Norms: over the hidden size, or over queries and keys before they are rotated.
#pragma once

#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/ops/norm.h"

namespace luthier {

// x / rms(x) · weight (arXiv:1910.07467).
class RmsNorm {
 public:
  RmsNorm(const Builder& build, const std::string& name, double eps) : weight_D_(build.Weight(name)), eps_(eps) {}
  Tensor operator()(const Tensor& x_TD) const { return ops::RmsNorm(x_TD, weight_D_, eps_); }

 private:
  Tensor weight_D_;
  double eps_;
};

// x / rms(x) · (1 + weight), as Gemma stores its norms. The sum is fp32: in bf16 it would round small weights away.
class UnitOffsetRmsNorm {
 public:
  UnitOffsetRmsNorm(const Builder& build, const std::string& name, double eps)
      : weight_D_(build.Weight(name)), eps_(eps) {}
  Tensor operator()(const Tensor& x_TD) const { return ops::RmsNorm(x_TD, 1 + weight_D_.to(at::kFloat), eps_); }

 private:
  Tensor weight_D_;
  double eps_;
};

// What SelfAttention does to queries (q_norm) and keys (k_norm), x_TNH → x_TNH: nothing.
class NoHeadNorm {
 public:
  NoHeadNorm(const Builder&, const std::string&, double) {}
  Tensor operator()(const Tensor& x_TNH) const { return x_TNH; }
};

// Each head is normed alone (arXiv:2010.04245).
template <class Norm>
class PerHeadNorm {
 public:
  PerHeadNorm(const Builder& build, const std::string& name, double eps) : norm_(build, name, eps) {}
  Tensor operator()(const Tensor& x_TNH) const { return norm_(x_TNH.flatten(0, 1)).view_as(x_TNH); }

 private:
  Norm norm_;
};

// All heads of a token are normed together.
class AllHeadsNorm {
 public:
  AllHeadsNorm(const Builder& build, const std::string& name, double eps) : norm_(build, name, eps) {}
  Tensor operator()(const Tensor& x_TNH) const { return norm_(x_TNH.flatten(1)).view_as(x_TNH); }

 private:
  RmsNorm norm_;
};

}  // namespace luthier
