// What one forward pass hands to every block.
#pragma once

#include <vector>

#include "worker/trainer/models/common/attention.h"
#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/ops/ops.h"

namespace luthier {

struct Pass {
  const std::vector<ops::RotaryTable>& rotary;  // one for each of ModelConfig::ropes
  Attention& attention;
  const AdapterSlices& slices;
};

}  // namespace luthier
