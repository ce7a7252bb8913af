#include "lib/base/gang_address.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

constexpr int kDefaultPort = 29400;
// Below, only root may listen; above, a node of many devices would have too few left.
constexpr int kMinPort = 1024, kMaxPort = 64000;
constexpr size_t kMaxHostBytes = 253;  // of a name in the DNS

bool IsHost(absl::string_view text) {
  const auto allowed = [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '.' || c == '_'; };
  return !text.empty() && text.size() <= kMaxHostBytes && absl::ascii_isalnum(text[0]) && text != "0.0.0.0" &&
         std::all_of(text.begin(), text.end(), allowed);
}

}  // namespace

absl::Status CheckGangAddress(const GangAddress& address) {
  if (!IsHost(address.host)) {
    return absl::InvalidArgumentError(absl::StrCat("'", address.host.substr(0, kMaxHostBytes),
                                                   "' is no host that other nodes can dial; give the name or the IPv4 "
                                                   "address that this machine has in their network"));
  }
  if (address.port >= kMinPort && address.port <= kMaxPort) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("port ", address.port, " cannot be taken; give one from ", kMinPort, " to ", kMaxPort));
}

absl::StatusOr<GangAddress> ReadGangAddress(absl::string_view text) {
  const size_t colon = text.find(':');
  GangAddress address{std::string(text.substr(0, colon)), kDefaultPort};
  if (colon != absl::string_view::npos && !absl::SimpleAtoi(text.substr(colon + 1), &address.port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no address; give HOST or HOST:PORT, such as ", "10.0.0.2:", kDefaultPort));
  }
  LUTHIER_RETURN_IF_ERROR(CheckGangAddress(address));
  return address;
}

}  // namespace luthier
