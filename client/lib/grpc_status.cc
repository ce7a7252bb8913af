#include "client/lib/grpc_status.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr char kUnreachable[] = "luthier/unreachable";

// gRPC has one code for its own transport errors and for a server that says UNAVAILABLE; only the words differ.
bool IsTransportError(const std::string& message) {
  for (const char* words : {"failed to connect", "onnection refused", "ocket closed", "DNS resolution failed", "GOAWAY",
                            "onnection reset", "ndpoint read failed", "Broken pipe", "recvmsg", "empty address list",
                            "keepalive", "Transport closed", "connections to all backends failing"}) {
    if (absl::StrContains(message, words)) return true;
  }
  return false;
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status, const std::string& server) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());  // both are google.rpc.Code
  if (code == absl::StatusCode::kUnavailable && IsTransportError(status.error_message())) {
    absl::Status unreachable = absl::UnavailableError(absl::StrCat("no server answers at ", server));
    unreachable.SetPayload(kUnreachable, absl::Cord(status.error_message()));
    return unreachable;
  }
  if (code == absl::StatusCode::kDeadlineExceeded) {
    return absl::DeadlineExceededError(absl::StrCat("the server at ", server, " did not answer in time"));
  }
  return absl::Status(code, status.error_message());
}

bool IsUnreachable(const absl::Status& status) { return status.GetPayload(kUnreachable).has_value(); }

}  // namespace luthier
