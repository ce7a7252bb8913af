#include "lib/wire/agent_protocol.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

std::string Text(const ProtocolRange& range) {
  return range.oldest == range.newest ? absl::StrCat(range.newest) : absl::StrCat(range.oldest, " to ", range.newest);
}

}  // namespace

absl::StatusOr<int> AgreeOnProtocol(const ProtocolRange& agent, const ProtocolRange& server) {
  const int newest = std::min(agent.newest, server.newest);
  if (newest >= std::max(agent.oldest, server.oldest)) return newest;
  return absl::FailedPreconditionError(
      absl::StrCat("register.protocol: this agent speaks ", Text(agent), " and the server ", Text(server),
                   agent.newest < server.newest ? "; install the server's version of luthier-worker here"
                                                : "; update luthierd first, or install its version of luthier-worker"));
}

}  // namespace luthier
