// Where nodes that run one job together reach each other.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace luthier {

struct GangAddress {
  std::string host;  // a name or an IPv4 address
  int port = 0;      // the first of several, one for each device of the node
};

// `HOST` or `HOST:PORT`; without a port 29400, as `torchrun` has it. Errors: INVALID_ARGUMENT, as CheckGangAddress.
absl::StatusOr<GangAddress> ReadGangAddress(absl::string_view text);

// Errors: INVALID_ARGUMENT for what no other machine can dial, and for what a command line could take for an option.
absl::Status CheckGangAddress(const GangAddress& address);

}  // namespace luthier
