// A certificate authority of one's own, for connections between people, nodes and a server that no public authority
// knows.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace luthier {

// Writes `ca.pem`, `server.pem` and `client.pem` with their `.key` files into the new folder `to`. The server's
// certificate holds for `hosts`, names or IP addresses, and for this machine; all of them hold from `now` on. Keys are
// readable by their owner only.
// Errors: ALREADY_EXISTS if the folder is there; INVALID_ARGUMENT for a host that is neither name nor address.
absl::Status WritePrivateCa(const std::string& to, const std::vector<std::string>& hosts, absl::Time now);

}  // namespace luthier
