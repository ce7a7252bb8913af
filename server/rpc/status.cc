#include "server/rpc/status.h"

#include <string>

#include "lib/wire/error_details.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

// Long enough for a queue of thousands to empty, or a server to start again.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message());
  ErrorDetails details;
  details.reason = ReasonOf(status);
  if (details.reason.empty()) details.reason = absl::StatusCodeToString(status.code());
  if (absl::IsInvalidArgument(status)) details.violations = ViolationsIn(message);
  if (absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) details.retry_delay = kRetryDelay;
  const int code = static_cast<int>(status.code());  // both are google.rpc.Code
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, SerializeErrorDetails(code, message, details));
}

}  // namespace luthier
