#include "worker/agent/own_address.h"

#include <netdb.h>
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
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), "0", &hints, &found); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", host, "' has no IPv4 address: ", gai_strerror(error)));
  }
  const bool own = CanListen(*found);
  freeaddrinfo(found);
  if (own) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("'", host, "' is no address of this machine; give one that `ip address` shows"));
}

}  // namespace luthier
