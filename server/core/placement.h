// Which waiting job starts where. Pure functions of a snapshot.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/job.h"

namespace luthier {

// A machine with an agent.
struct Node {
  std::string id;
  bool ready = false;  // its agent has a session; else its attempts wait for it until `deadline`
  bool leaving = false;   // its agent is about to end: it reports what became of its attempts and gets no others
  absl::Time deadline = absl::InfinitePast();
  absl::Time last_heartbeat = absl::InfinitePast();
  int devices = 1;  // GPUs, or 1 for the CPUs of a node without any
  bool gpus = false;
  std::string agent_version;
  std::string inventory;  // bytes of the layer above
};

// A node that can take attempts, and what of it is free.
struct NodeView {
  const Node* node;
  std::vector<int> free;  // devices, ascending
};

// A job gets devices of a node.
struct Placement {
  const Job* job;
  std::string node;
  std::vector<int> devices;
};

// In the order of `waiting`; a job that fits nowhere is passed over. The node that fits best, so that large holes stay for
// large jobs; the job's last node before any other, because its checkpoints lie there.
std::vector<Placement> Place(const std::vector<const Job*>& waiting, std::vector<NodeView> nodes);

// Why a job that Place() passed over has to wait, in words for people.
std::string WhyNoNodeFits(const Job& job, const std::vector<NodeView>& nodes);

}  // namespace luthier
