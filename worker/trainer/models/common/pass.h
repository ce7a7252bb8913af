// What one forward pass hands to every block.
#pragma once

#include <memory>
#include <vector>

#include "worker/trainer/models/common/attention.h"
#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/ops/ops.h"

namespace luthier {

// Owns all of it: a layer that is computed again in the backward pass needs it after Forward has returned.
struct Pass {
  std::vector<ops::RotaryTable> rotary;  // one for each of ModelConfig::ropes
  std::shared_ptr<Attention> attention;
  AdapterSlices slices;
};

}  // namespace luthier
