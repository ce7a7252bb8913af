// The processes that train one run together, each with a part of every step.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "worker/trainer/distributed/rendezvous.h"
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
  // File descriptor of MakeRendezvous, which ranks inherited; over several nodes the leading one only.
  int rendezvous = -1;
  // How long the first one waits for the last to come. Those of a node are started together and come within seconds,
  // unless one hangs; nodes begin when each has fetched what it reads.
  std::chrono::milliseconds patience = std::chrono::minutes(5);
  int local_rank = 0;                   // among the ranks of its node
  std::optional<Meeting> meeting = {};  // of ranks over several nodes
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
  int local_rank() const { return place_.local_rank; }
  int size() const { return place_.size; }
  bool leads() const { return rank() == 0; }

  // Adds up the tensors of all ranks, in place: each rank gives as many, of the same shapes and types. Throws LostRank.
  void Sum(const std::vector<Tensor>& tensors) const;
  // The value that the leading rank gave. Throws LostRank.
  int64_t Agree(int64_t value) const;
  // The ranks' tensors, of one dimension and the same size, behind one another. Throws LostRank.
  Tensor Gather(const Tensor& mine) const;
  // The leading rank's tensor, on the CPU. The others give one of its shape and type, which becomes it. Throws
  // LostRank.
  Tensor Share(const Tensor& tensor) const;
  // The leading rank's text. Throws LostRank.
  std::string Share(const std::string& text) const;

 private:
  struct Group;

  RankPlace place_;
  std::shared_ptr<Group> group_;  // null if alone
};

}  // namespace luthier
