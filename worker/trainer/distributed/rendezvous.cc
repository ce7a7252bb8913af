#include "worker/trainer/distributed/rendezvous.h"

#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/descriptor.h"
#include "lib/base/host_addresses.h"
#include "lib/base/own_address.h"

namespace luthier {
namespace {

using Clock = std::chrono::steady_clock;

// A socket with that address, which has to be one of this machine's. Children inherit it.
absl::StatusOr<int> BindTo(const std::string& host, uint16_t port) {
  const absl::StatusOr<Addresses> addresses = Resolve(host, port);
  if (!addresses.ok()) return absl::FailedPreconditionError(absl::StrCat(host, ": ", addresses.status().message()));
  int error = 0;
  for (const addrinfo* address = addresses->get(); address != nullptr; address = address->ai_next) {
    Descriptor opened(socket(address->ai_family, address->ai_socktype, address->ai_protocol));
    const int yes = 1;  // connections of an attempt before, which are over, do not keep the port
    setsockopt(opened.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(opened.get(), address->ai_addr, address->ai_addrlen) == 0) return opened.release();
    error = errno;
  }
  return absl::FailedPreconditionError(absl::StrCat(host, ":", port, ": ", std::strerror(error)));
}

bool IsListenedAt(const std::string& host, uint16_t port) {
  const absl::StatusOr<Addresses> addresses = Resolve(host, port);
  if (!addresses.ok()) return false;
  for (const addrinfo* address = addresses->get(); address != nullptr; address = address->ai_next) {
    const Descriptor opened(socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol));
    const timeval patience = {.tv_sec = 5, .tv_usec = 0};  // with a machine that does not answer at all
    setsockopt(opened.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(opened.get(), address->ai_addr, address->ai_addrlen) == 0) return true;
  }
  return false;
}

bool IsSameHost(const sockaddr* one, const sockaddr* other) {
  if (one->sa_family != other->sa_family) return false;
  if (one->sa_family == AF_INET) {
    return std::memcmp(&reinterpret_cast<const sockaddr_in*>(one)->sin_addr,
                       &reinterpret_cast<const sockaddr_in*>(other)->sin_addr, sizeof(in_addr)) == 0;
  }
  return one->sa_family == AF_INET6 &&
         std::memcmp(&reinterpret_cast<const sockaddr_in6*>(one)->sin6_addr,
                     &reinterpret_cast<const sockaddr_in6*>(other)->sin6_addr, sizeof(in6_addr)) == 0;
}

// The network interface that has this address; empty if none has.
std::string InterfaceOf(const std::string& host) {
  const absl::StatusOr<Addresses> addresses = Resolve(host, 0);
  ifaddrs* interfaces = nullptr;
  if (!addresses.ok() || getifaddrs(&interfaces) != 0) return "";
  std::string name;
  for (const ifaddrs* interface = interfaces; interface != nullptr; interface = interface->ifa_next) {
    if (interface->ifa_addr != nullptr && IsSameHost(interface->ifa_addr, addresses->get()->ai_addr))
      name = interface->ifa_name;
  }
  freeifaddrs(interfaces);
  return name;
}

}  // namespace

absl::StatusOr<Meeting> ParseMeeting(const std::string& text) {
  const size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  int port = 0;
  if (colon == std::string::npos || host.empty() || !absl::SimpleAtoi(text.substr(colon + 1), &port) || port < 1 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--meeting: ", text, " is no HOST:PORT; give the leading node's, such as 10.0.0.1:29400"));
  }
  Meeting meeting;
  meeting.host = host;
  meeting.port = static_cast<uint16_t>(port);
  return meeting;
}

absl::StatusOr<int> MakeRendezvous(const std::optional<Meeting>& meeting, bool leads) {
  if (!meeting) {
    const int file = memfd_create("luthier-rendezvous", 0);
    if (file < 0) return absl::FailedPreconditionError(absl::StrCat("no file in memory: ", std::strerror(errno)));
    return file;
  }
  if (const absl::Status own = CheckOwnAddress(meeting->address); !own.ok())
    return absl::FailedPreconditionError(absl::StrCat("--address: ", own.message()));
  if (!leads) return -1;
  const absl::StatusOr<int> bound = BindTo(meeting->host, meeting->port);
  if (bound.ok()) return bound;
  return absl::FailedPreconditionError(
      absl::StrCat("--meeting: ", bound.status().message(), "; give a free port of an address that this machine has"));
}

bool WaitForMeeting(const Meeting& meeting, std::chrono::milliseconds patience) {
  const Clock::time_point end = Clock::now() + patience;
  while (!IsListenedAt(meeting.host, meeting.port)) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  return true;
}

void UseNetworkOf(const std::string& address) {
  const std::string interface = InterfaceOf(address);
  // "=": the whole name, not its beginning.
  if (!interface.empty()) setenv("NCCL_SOCKET_IFNAME", absl::StrCat("=", interface).c_str(), /*overwrite=*/0);
}

}  // namespace luthier
