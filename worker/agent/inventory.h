// What this machine has, as far as the agent may use it.
#pragma once

#include <memory>
#include <string>

#include "luthier/v1/nodes.pb.h"
#include "worker/agent/nvml.h"

namespace luthier {

// One thread at a time.
class Inventory {
 public:
  // `nvml` may be null: no GPUs.
  explicit Inventory(std::unique_ptr<Nvml> nvml, int shares = 1);
  // Everything, with the GPUs' memory in use now.
  v1::Inventory Read() const;

 private:
  std::unique_ptr<Nvml> nvml_;
  v1::Inventory fixed_;  // what does not change
};

}  // namespace luthier
