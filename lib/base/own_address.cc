#include "lib/base/own_address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// On any free port, for a moment.
bool CanListen(const addrinfo& address) {
  const int fd = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol);
  if (fd < 0) return false;
  const bool bound = bind(fd, address.ai_addr, address.ai_addrlen) == 0;
  close(fd);
  return bound;
}

}  // namespace

absl::Status CheckOwnAddress(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), "0", &hints, &found); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", host, "' has no address: ", gai_strerror(error),
                                                   "; give a name that this machine can look up, or an address"));
  }
  // A name may stand for several, as `localhost` does for one of each kind.
  bool own = false;
  for (const addrinfo* address = found; address != nullptr && !own; address = address->ai_next)
    own = CanListen(*address);
  freeaddrinfo(found);
  if (own) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("'", host, "' is no address of this machine; give one that `ip address` shows"));
}

bool IsLoopback(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), "0", &hints, &found) != 0) return false;
  const bool loopback =
      found->ai_family == AF_INET6
          ? IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(found->ai_addr)->sin6_addr) != 0
          : ntohl(reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr.s_addr) >> IN_CLASSA_NSHIFT ==
                IN_LOOPBACKNET;
  freeaddrinfo(found);
  return loopback;
}

}  // namespace luthier
