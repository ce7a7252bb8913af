// Where the ranks of a run find each other. Made by the process that starts them, one on each node.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace luthier {

// How ranks of several nodes find each other: the leading one listens, all others come to it.
struct Meeting {
  std::string host;  // of the leading node
  uint16_t port = 0;
  std::string address;  // host of this node, by which ranks of the others reach its own
  // What only ranks of this run say: those of an earlier attempt that still look for theirs meet nobody.
  std::string run;
};

// HOST and PORT of "HOST:PORT", where an IPv6 address stands in brackets. Errors: INVALID_ARGUMENT.
absl::StatusOr<Meeting> ParseMeeting(const std::string& text);

// A file descriptor for the ranks of this node to inherit. Without a meeting a file in memory, which has no name:
// nothing of an earlier run can be found there, and nothing is left behind. With one a socket that is bound to it, for
// the rank that leads; -1 on nodes where none does.
// Errors: FAILED_PRECONDITION if this machine does not have the meeting's address of this node, or if its port is
// taken: what another node may be better at.
absl::StatusOr<int> MakeRendezvous(const std::optional<Meeting>& meeting, bool leads);

// Waits until the leading rank listens at the meeting. False if it does not in that time.
bool WaitForMeeting(const Meeting& meeting, std::chrono::milliseconds patience);

// Makes NCCL, in processes that are started from here on, find other nodes on the network that has this address, unless
// the environment says which one: it would take any. One thread.
void UseNetworkOf(const std::string& address);

}  // namespace luthier
