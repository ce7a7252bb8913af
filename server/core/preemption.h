// What has to stop so that a job has room. Pure functions of a snapshot.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/placement.h"
#include "server/core/policy.h"

namespace luthier {

// Nodes that will have room for a job, once what has to stop for it has stopped.
struct Room {
  Views views;                      // the leading one first
  std::vector<const Job*> victims;  // each once, on however many of the nodes it runs
};

// The room that costs least, on nodes with GPUs or on nodes without: first the least urgent stop, then the fewest.
// `own`: the job is within the guarantee of its tenant. `end`: when it is expected to end if it starts now. None if
// nothing that may stop would be enough.
std::optional<Room> CheapestRoom(const Job& job, bool own, Snapshot& snapshot,
                                 const std::optional<Reservation>& reservation, absl::Time end);
// Keeps the room for the job until then: nothing that comes behind it may have it.
void Promise(const Room& room, const Job& job, absl::Time end, Snapshot& snapshot);

}  // namespace luthier
