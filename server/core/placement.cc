#include "server/core/placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

NodeView* BestNode(const Job& job, std::vector<NodeView>& nodes) {
  NodeView* best = nullptr;
  for (NodeView& view : nodes) {
    if (static_cast<int>(view.free.size()) < job.devices) continue;
    if (view.node->id == job.node) return &view;
    if (best == nullptr || view.free.size() < best->free.size()) best = &view;
  }
  return best;
}

}  // namespace

std::vector<Placement> Place(const std::vector<const Job*>& waiting, std::vector<NodeView> nodes) {
  std::vector<Placement> placements;
  for (const Job* job : waiting) {
    NodeView* view = BestNode(*job, nodes);
    if (view == nullptr) continue;
    const auto end = view->free.begin() + job->devices;
    placements.push_back({job, view->node->id, std::vector<int>(view->free.begin(), end)});
    view->free.erase(view->free.begin(), end);
  }
  return placements;
}

std::string WhyNoNodeFits(const Job& job, const std::vector<NodeView>& nodes) {
  if (nodes.empty()) return "no node is connected; start luthier-worker on a machine";
  int largest = 0;
  for (const NodeView& view : nodes) largest = std::max(largest, view.node->devices);
  if (largest < job.devices) {
    return absl::StrCat("the job asks for ", job.devices, " devices and the largest connected node has ", largest);
  }
  return nodes.size() == 1 ? "the connected node is busy" : absl::StrCat("all ", nodes.size(), " connected nodes are busy");
}

}  // namespace luthier
