#include "lib/base/own_address.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "lib/base/descriptor.h"
#include "lib/base/host_addresses.h"

namespace luthier {
namespace {

// On any free port, for a moment.
bool CanListen(const addrinfo& address) {
  const Descriptor opened(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol));
  return opened.is_open() && bind(opened.get(), address.ai_addr, address.ai_addrlen) == 0;
}

}  // namespace

absl::Status CheckOwnAddress(const std::string& host) {
  const absl::StatusOr<Addresses> found = Resolve(host, 0);
  if (!found.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("'", host, "' has no address: ", found.status().message(),
                                                   "; give a name that this machine can look up, or an address"));
  }
  // A name may stand for several, as `localhost` does for one of each kind.
  for (const addrinfo* address = found->get(); address != nullptr; address = address->ai_next) {
    if (CanListen(*address)) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", host, "' is no address of this machine; give one that `ip address` shows"));
}

bool IsLoopback(const std::string& host) {
  const absl::StatusOr<Addresses> found = Resolve(host, 0);
  if (!found.ok()) return false;
  const sockaddr* const first = (*found)->ai_addr;
  if (first->sa_family == AF_INET6)
    return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(first)->sin6_addr) != 0;
  return ntohl(reinterpret_cast<const sockaddr_in*>(first)->sin_addr.s_addr) >> IN_CLASSA_NSHIFT == IN_LOOPBACKNET;
}

}  // namespace luthier
