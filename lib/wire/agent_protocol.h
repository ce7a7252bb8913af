// What agents and servers of different versions may say to each other (docs/deploy.md, "Update").
#pragma once

#include "absl/status/statusor.h"

namespace luthier {

// Versions of WorkerService and of trainer specs that a program speaks. What says none is of before they had numbers.
struct ProtocolRange {
  int oldest = 1;
  int newest = 1;
};

// Ours. `newest` grows with every order, report or field of a trainer spec that the program at the other end would
// refuse or misunderstand if it were of before; `oldest` when we stop to understand what only older ones say.
inline constexpr ProtocolRange kAgentProtocol = {.oldest = 1, .newest = 1};

// Attempts that a device is given to at a time, at most: each share is a place in the server's memory.
inline constexpr int kMostShares = 64;

// The newest that both speak. Errors: FAILED_PRECONDITION if there is none, for whoever runs the agent.
absl::StatusOr<int> AgreeOnProtocol(const ProtocolRange& agent, const ProtocolRange& server);

}  // namespace luthier
