// Nodes by whether they have GPUs: those of a gang are all of one kind.
#pragma once

#include <algorithm>
#include <array>

#include "server/core/policy.h"

namespace luthier {

// How many of some nodes there are of each kind.
class NodeKinds {
 public:
  void Add(const Node& node) { ++counts_[node.gpus ? 1 : 0]; }
  int LikeThis(const Node& node) const { return counts_[node.gpus ? 1 : 0]; }
  // Of the kind of which there are more.
  int most() const { return std::max(counts_[0], counts_[1]); }

 private:
  std::array<int, 2> counts_ = {};
};

}  // namespace luthier
