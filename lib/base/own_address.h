// Whether an address is one of this machine.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace luthier {

// Errors: INVALID_ARGUMENT if `host`, a name or an address of IPv4 or IPv6, is none of an interface of this machine, as
// the public address of a machine behind a router is: nothing here could listen on it.
absl::Status CheckOwnAddress(const std::string& host);

// Whether it is one by which no other machine reaches this one, as a machine's name often is on that machine itself
// (127.0.1.1 in /etc/hosts).
bool IsLoopback(const std::string& host);

}  // namespace luthier
