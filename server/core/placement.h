// Which nodes and devices a job could have: ever, now, or later. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "server/core/policy.h"

namespace luthier {

// Whether the node has the labels that the job asks for.
bool HasLabels(const Node& node, const Job& job);
// An export: it computes on the CPUs of its node, also where that has GPUs, and asks for main memory only.
bool ComputesOnCpus(const Job& job);
// Bytes that the job needs of each device of the node.
int64_t MemoryFor(const Job& job, const Node& node);
// Whether the node has the labels and the devices for the job, or for a part of it, if others reach it or not.
bool HasDevicesFor(const Job& job, const Node& node);
// Whether the job, or a part of it, fits on the node when nothing else runs there.
bool CouldRun(const Job& job, const Node& node);

using Views = std::vector<NodeView*>;

// Of those devices of a node, the ones that are large enough for the job.
int CountLargeEnough(const std::vector<int>& devices, const Node& node, const Job& job);
// Devices that the job could have at once.
int FreeFor(const Job& job, const NodeView& view);

// The nodes that are kept for the first job that fits nowhere.
struct Reservation {
  struct Kept {
    const NodeView* view;
    int spare;  // devices that are free at `start` beyond what the job needs
  };
  std::vector<Kept> nodes;
  absl::Time start;
};
// The nodes where the job can start first: that is when the last of them has room. None if it never can.
std::optional<Reservation> Reserve(const Job& job, const std::vector<NodeView>& nodes, absl::Time now);
// Whether the job may take devices of a node without delaying the reservation. `end`: when it is expected to end if it
// starts now.
bool LeavesReservation(const Job& job, const NodeView& view, const std::optional<Reservation>& reservation,
                       absl::Time end);

// The nodes that fit best, so that large holes stay for large jobs, and GPUs for those that compute on them; the job's
// last node before any other, because its checkpoints lie there, and those where its trainer died, or attempts were
// lost again and again, after all others. Nodes whose ranks did not find one another lately are taken together only if
// there are no others. The first is to lead. Empty if there are not enough. `end`: as for LeavesReservation.
Views BestNodes(const Job& job, std::vector<NodeView>& nodes, const std::optional<Reservation>& reservation,
                absl::Time end);

// Takes devices for the job out of those that are free: the smallest that will do, so that large ones stay.
std::vector<int> TakeFree(const Job& job, int count, NodeView& view);
// What was decided in this cycle stops for nobody.
void AddRelease(const Job& job, absl::Time end, NodeView& view);

}  // namespace luthier
