#include "lib/wire/error_details.h"

#include "absl/strings/str_split.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace luthier {

std::vector<FieldViolation> ViolationsIn(absl::string_view message) {
  std::vector<FieldViolation> violations;
  for (const absl::string_view line : absl::StrSplit(message, '\n', absl::SkipEmpty())) {
    const size_t colon = line.find(": ");
    if (colon == absl::string_view::npos) {
      violations.push_back({"", std::string(line)});
    } else {
      violations.push_back({std::string(line.substr(0, colon)), std::string(line.substr(colon + 2))});
    }
  }
  return violations;
}

std::string SerializeErrorDetails(int code, absl::string_view message, const ErrorDetails& details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(std::string(message));
  google::rpc::ErrorInfo info;
  info.set_reason(details.reason);
  info.set_domain("luthier");
  status.add_details()->PackFrom(info);
  if (!details.violations.empty()) {
    google::rpc::BadRequest request;
    for (const FieldViolation& violation : details.violations) {
      google::rpc::BadRequest::FieldViolation& added = *request.add_field_violations();
      added.set_field(violation.field);
      added.set_description(violation.description);
    }
    status.add_details()->PackFrom(request);
  }
  if (details.retry_delay) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(*details.retry_delay));
    status.add_details()->PackFrom(retry);
  }
  if (!details.quota_subject.empty()) {
    google::rpc::QuotaFailure quota;
    google::rpc::QuotaFailure::Violation& violation = *quota.add_violations();
    violation.set_subject(details.quota_subject);
    violation.set_description(std::string(message));
    status.add_details()->PackFrom(quota);
  }
  return status.SerializeAsString();
}

ErrorDetails ParseErrorDetails(absl::string_view bytes) {
  ErrorDetails details;
  google::rpc::Status status;
  if (!status.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return details;
  for (const google::protobuf::Any& detail : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest request;
    google::rpc::RetryInfo retry;
    google::rpc::QuotaFailure quota;
    if (detail.UnpackTo(&info)) {
      details.reason = info.reason();
    } else if (detail.UnpackTo(&request)) {
      for (const google::rpc::BadRequest::FieldViolation& violation : request.field_violations())
        details.violations.push_back({violation.field(), violation.description()});
    } else if (detail.UnpackTo(&retry)) {
      details.retry_delay =
          absl::Seconds(retry.retry_delay().seconds()) + absl::Nanoseconds(retry.retry_delay().nanos());
    } else if (detail.UnpackTo(&quota) && quota.violations_size() > 0) {
      details.quota_subject = quota.violations(0).subject();
    }
  }
  return details;
}

}  // namespace luthier
