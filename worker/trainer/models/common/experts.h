// A mixture of experts (arXiv:1701.06538): a router sends every token through a few of many small MLPs.
#pragma once

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
  Tensor router_ED_;  // E experts
  std::vector<GatedMlp> experts_;
  int64_t per_token_;
  bool normalize_;
};

}  // namespace luthier
