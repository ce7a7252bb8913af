#include "client/lib/grpc_status.h"

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr char kUnreachable[] = "luthier/unreachable";

// What gRPC says where an answer has the form of HTTP and not its own: a proxy, or another server.
constexpr char kHttpError[] = "Received http2 header with status";

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
  if (code == absl::StatusCode::kUnimplemented && absl::StrContains(status.error_message(), kHttpError)) {
    return absl::FailedPreconditionError(absl::StrCat("what answers at ", server, " is no luthierd (",
                                                      status.error_message(), "); give its address with --server"));
  }
  if (code == absl::StatusCode::kUnimplemented && status.error_message().empty()) {  // gRPC's, for an unknown method
    return absl::UnimplementedError(absl::StrCat("the server at ", server,
                                                 " has no such call: it is older than this program (`luthier version`)"
                                                 "; install the same version on both sides"));
  }
  if (code == absl::StatusCode::kCancelled)
    return absl::UnavailableError(absl::StrCat("the server at ", server, " ended the call: it is shutting down"));
  if (code == absl::StatusCode::kDeadlineExceeded) {
    return absl::DeadlineExceededError(absl::StrCat("the server at ", server, " did not answer in time"));
  }
  return absl::Status(code, status.error_message());
}

bool IsUnreachable(const absl::Status& status) { return status.GetPayload(kUnreachable).has_value(); }

bool WasHungUpOn(const absl::Status& status) {
  const auto said = status.GetPayload(kUnreachable);
  if (!said) return false;
  // gRPC's words for a connection that nobody looked after while the call waited for its next try: they say nothing.
  if (absl::StrContains(std::string(*said), "tcp handshaker shutdown")) return false;
  for (const char* words : {"ocket closed", "onnection reset", "ndpoint read failed", "andshake", "SSL"}) {
    if (absl::StrContains(std::string(*said), words)) return true;
  }
  return false;
}

}  // namespace luthier
