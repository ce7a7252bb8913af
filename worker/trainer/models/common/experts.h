// A mixture of experts (arXiv:1701.06538): a router sends every token through a few of many small MLPs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/trainer/models/common/builder.h"
#include "worker/trainer/models/common/gated_mlp.h"
#include "worker/trainer/models/common/pass.h"

namespace luthier {

class Experts {
 public:
  Experts(const Builder& build, const ModelConfig& config);

  Tensor operator()(const Tensor& x_TD, const Pass& pass) const;

 private:
  struct Expert {
    Tensor gate_FD, up_FD, down_DF;
  };

  std::unique_ptr<Linear> router_;  // to E experts
  std::vector<Expert> experts_;
  LoraWeights gate_up_, down_;  // of all experts together, gate above up; undefined where they have no adapter
  GatedUnit gated_;
  int64_t per_token_;
  bool normalize_;
};

// The adapter of E experts together by expert, [E, R, I] and [E, O, R]: as PEFT has it, rows of A lie by expert,
// columns of B by rank.
Tensor StackedA(const Tensor& a_RI, int64_t experts);
Tensor StackedB(const Tensor& b_OR, int64_t experts);
// The b_OR that StackedB makes this of.
Tensor UnstackedB(const Tensor& b_EOR);

// What each expert has of it, in part `part` of `parts` equal ones of its outputs; undefined if `all` is.
std::vector<LoraWeights> OfEachExpert(const LoraWeights& all, int64_t experts, int64_t part, int64_t parts);

}  // namespace luthier
