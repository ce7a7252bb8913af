#include "server/rpc/status.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/utf8.h"
#include "lib/wire/error_details.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

// Long enough for a queue of thousands to empty, or a server to start again.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

// A status travels in headers, of which clients take 256 kB: as it is, in its details, and line by line in them.
constexpr size_t kMostBytes = 32 << 10;

// The message up to the last whole character that fits: a value that it quotes may be megabytes long.
std::string Fitting(absl::string_view message) {
  if (message.size() <= kMostBytes) return std::string(message);
  size_t end = kMostBytes;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(message.substr(0, end), "…");
}

bool WaitingHelps(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return absl::IsUnavailable(status);
  const std::string reason = ReasonOf(status);
  return reason != kTooLarge && reason != kTenantStorageFull;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // A value that it quotes may be cut in the middle of a character, and with half of one no client reads the details.
  const std::string message = WellFormed(Fitting(status.message()));
  ErrorDetails details;
  details.reason = ReasonOf(status);
  if (details.reason.empty()) details.reason = absl::StatusCodeToString(status.code());
  if (absl::IsInvalidArgument(status)) details.violations = ViolationsIn(message);
  if (WaitingHelps(status)) details.retry_delay = kRetryDelay;
  details.quota_subject = QuotaSubjectOf(status);
  const int code = static_cast<int>(status.code());  // both are google.rpc.Code
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, SerializeErrorDetails(code, message, details));
}

}  // namespace luthier
