// The details of an error as google.rpc.Status carries them (AIP-193).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace luthier {

struct FieldViolation {
  std::string field;  // path, empty if the message names none
  std::string description;
  friend bool operator==(const FieldViolation&, const FieldViolation&) = default;
};

struct ErrorDetails {
  std::string reason;                         // ErrorInfo, with the domain `luthier`
  std::vector<FieldViolation> violations;     // BadRequest
  std::optional<absl::Duration> retry_delay;  // RetryInfo
  std::string quota_subject = {};             // QuotaFailure: whose limit was reached; empty: none was
};

// One violation a line of `message`: "field: what is wrong".
std::vector<FieldViolation> ViolationsIn(absl::string_view message);

// The bytes of a google.rpc.Status, for `grpc-status-details-bin`.
std::string SerializeErrorDetails(int code, absl::string_view message, const ErrorDetails& details);

// What is not understood is left out.
ErrorDetails ParseErrorDetails(absl::string_view bytes);

}  // namespace luthier
