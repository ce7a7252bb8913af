// Addresses that a host's name stands for.
#pragma once

#include <netdb.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace luthier {

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};
// A list; never empty.
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

// For streams, of either IP version. `host`: a name or an address. Errors: NOT_FOUND with the reason alone.
absl::StatusOr<Addresses> Resolve(const std::string& host, uint16_t port);

}  // namespace luthier
