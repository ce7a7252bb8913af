// A machine-readable reason beside the message of an error, for clients that decide by it (google.rpc.ErrorInfo).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace luthier {

inline constexpr absl::string_view kReasonPayload = "luthier.reason";

// `reason`: UPPER_SNAKE_CASE, at most 63 characters.
inline absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

// Empty if none was given.
inline std::string ReasonOf(const absl::Status& status) {
  const auto reason = status.GetPayload(kReasonPayload);
  return reason ? std::string(*reason) : "";
}

}  // namespace luthier
