#include "client/cli/exit_code.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr char kExitCode[] = "luthier/exit-code";

}  // namespace

absl::Status WithExitCode(absl::Status status, ExitCode code) {
  status.SetPayload(kExitCode, absl::Cord(absl::StrCat(static_cast<int>(code))));
  return status;
}

ExitCode ExitCodeOf(const absl::Status& status) {
  if (const auto marked = status.GetPayload(kExitCode)) {
    int code = 0;
    if (absl::SimpleAtoi(std::string(*marked), &code)) return static_cast<ExitCode>(code);
  }
  switch (status.code()) {
    case absl::StatusCode::kOk: return ExitCode::kOk;
    case absl::StatusCode::kCancelled: return ExitCode::kCancelled;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange: return ExitCode::kUsage;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied: return ExitCode::kAuthentication;
    case absl::StatusCode::kNotFound: return ExitCode::kNotFound;
    case absl::StatusCode::kUnavailable: return ExitCode::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded: return ExitCode::kTimeout;
    default: return ExitCode::kFailure;
  }
}

absl::Status OutcomeOf(const v1::FineTuningJob& job) {
  if (job.state() == v1::FineTuningJob::FAILED) {
    return WithExitCode(absl::AbortedError(absl::StrCat(job.name(), " failed: ", job.failure().message())),
                        ExitCode::kJobFailed);
  }
  if (job.state() == v1::FineTuningJob::CANCELLED)
    return absl::CancelledError(absl::StrCat(job.name(), " was cancelled"));
  return absl::OkStatus();
}

}  // namespace luthier
