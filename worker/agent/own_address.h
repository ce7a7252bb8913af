// Whether an address is one of this machine.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace luthier {

// Errors: INVALID_ARGUMENT if `host`, a name or an IPv4 address, is none of an interface of this machine, as the public
// address of a machine behind a router is: nothing here could listen on it.
absl::Status CheckOwnAddress(const std::string& host);

}  // namespace luthier
