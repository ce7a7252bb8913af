#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/state.h"

namespace luthier {
namespace {

using Busy = std::map<std::string, std::set<int>>;

int Free(const Node& node, const Busy& busy) {
  const auto found = busy.find(node.id);
  return node.devices - (found == busy.end() ? 0 : static_cast<int>(found->second.size()));
}

// The node that fits best, so that large holes stay for large jobs; the job's last node before any other.
const Node* BestNode(const Job& job, const std::map<std::string, Node>& nodes, const Busy& busy) {
  const Node* best = nullptr;
  for (const auto& [id, node] : nodes) {
    if (!node.ready || Free(node, busy) < job.devices) continue;
    if (id == job.node) return &node;
    if (best == nullptr || Free(node, busy) < Free(*best, busy)) best = &node;
  }
  return best;
}

std::string WhyItWaits(const Job& job, const std::map<std::string, Node>& nodes) {
  int ready = 0, largest = 0;
  for (const auto& [id, node] : nodes) {
    if (!node.ready) continue;
    ++ready;
    largest = std::max(largest, node.devices);
  }
  if (ready == 0) return "no node is connected; start luthier-worker on a machine";
  if (largest < job.devices) {
    return absl::StrCat("the job asks for ", job.devices, " devices and the largest connected node has ", largest);
  }
  return absl::StrCat(ready == 1 ? "the connected node is" : absl::StrCat("all ", ready, " connected nodes are"), " busy");
}

}  // namespace

std::vector<Placement> Place(const std::vector<const Job*>& waiting, const std::map<std::string, Node>& nodes,
                             const Busy& busy_before, absl::Time now) {
  Busy busy = busy_before;
  std::vector<Placement> placements;
  for (const Job* job : waiting) {
    Placement placement{job->id};
    if (now < job->not_before) {
      placement.reason = absl::StrCat("attempt ", job->attempt, " was lost; the next one starts in ",
                                      absl::ToInt64Seconds(absl::Ceil(job->not_before - now, absl::Seconds(1))), " s");
    } else if (const Node* node = BestNode(*job, nodes, busy)) {
      placement.node = node->id;
      std::set<int>& taken = busy[node->id];
      for (int device = 0; device < node->devices && static_cast<int>(placement.devices.size()) < job->devices; ++device) {
        if (taken.insert(device).second) placement.devices.push_back(device);
      }
    } else {
      placement.reason = WhyItWaits(*job, nodes);
    }
    placements.push_back(std::move(placement));
  }
  return placements;
}

}  // namespace luthier
