// The processes that train one run together, each with a part of every step.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "worker/trainer/torch.h"

namespace luthier {

// Another rank is gone, or does something else than this one. Thrown out of whatever waits for it.
class LostRank : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Where a process stands among the ranks.
struct RankPlace {
  int rank = 0;
  int size = 1;
  int rendezvous = -1;  // file descriptor that all ranks inherited: where they find each other
  // How long the first one waits for the last to come. They are started together and come within seconds, unless one
  // hangs.
  std::chrono::milliseconds patience = std::chrono::minutes(5);
};

// What ranks say to each other. All of them call the same functions in the same order, and what they get has the same
// bits in all of them. One thread.
class Ranks {
 public:
  // One rank alone, which has nobody to talk to.
  Ranks() = default;
  // Waits until all are there. Throws LostRank, also if one does not come in time.
  explicit Ranks(const RankPlace& place);

  int rank() const { return place_.rank; }
  int size() const { return place_.size; }
  bool leads() const { return rank() == 0; }

  // Adds up the tensors of all ranks, in place: each rank gives as many, of the same shapes and types. Throws LostRank.
  void Sum(const std::vector<Tensor>& tensors) const;
  // The value that the leading rank gave. Throws LostRank.
  int64_t Agree(int64_t value) const;
  // The ranks' tensors, of one dimension and the same size, behind one another. Throws LostRank.
  Tensor Gather(const Tensor& mine) const;

 private:
  struct Group;

  RankPlace place_;
  std::shared_ptr<Group> group_;  // null if alone
};

}  // namespace luthier
