// gRPC's status as Abseil's, in words for the person at the terminal.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace luthier {

// `server`: the address that was called; named when it could not be reached. Of a call that this side cancelled there
// is nothing to ask: CANCELLED comes from a server that shuts down, and is UNAVAILABLE.
absl::Status FromGrpc(const grpc::Status& status, const std::string& server);

// Whether a status of FromGrpc says that nothing answered at the address, as opposed to a server that cannot serve just
// now.
bool IsUnreachable(const absl::Status& status);

// Whether something took such a connection and ended it, as one does that wants TLS, or none, or another certificate.
bool WasHungUpOn(const absl::Status& status);

}  // namespace luthier
