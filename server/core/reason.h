// What errors carry beside their message, for clients that decide by it (google.rpc.ErrorInfo), and the one message
// that must not vary.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace luthier {

inline constexpr absl::string_view kReasonPayload = "luthier.reason";

// `reason`: UPPER_SNAKE_CASE, at most 63 characters.
inline absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

inline constexpr absl::string_view kQuotaPayload = "luthier.quota";

// Says that the error is a limit that was reached (google.rpc.QuotaFailure); `subject`: whose, such as
// `tenants/default`.
inline absl::Status WithQuota(absl::Status status, absl::string_view subject) {
  status.SetPayload(kQuotaPayload, absl::Cord(subject));
  return status;
}
inline std::string QuotaSubjectOf(const absl::Status& status) {
  const auto subject = status.GetPayload(kQuotaPayload);
  return subject ? std::string(*subject) : "";
}

// A job that no node has the memory for, and a tenant that stores as much as it may until somebody deletes something.
// Of all that is RESOURCE_EXHAUSTED, only these do not end by waiting.
inline constexpr absl::string_view kTooLarge = "TOO_LARGE", kTenantStorageFull = "TENANT_STORAGE_FULL";

// Rows that a job cannot be trained on, or a template that cannot render them: they had to be read to find that out.
inline constexpr absl::string_view kRowsRefused = "ROWS_REFUSED";

// What a tenant gets that asks for more than it may have.
inline absl::Status TenantMayNotHaveMore(absl::string_view tenant, absl::string_view message,
                                         absl::string_view reason) {
  return WithQuota(WithReason(absl::ResourceExhaustedError(message), reason), absl::StrCat("tenants/", tenant));
}

// Empty if none was given.
inline std::string ReasonOf(const absl::Status& status) {
  const auto reason = status.GetPayload(kReasonPayload);
  return reason ? std::string(*reason) : "";
}

// The words of every NOT_FOUND of the server: one function, so that they are the same whether a resource is another
// tenant's or nobody's.
inline absl::Status DoesNotExist(absl::string_view name) {
  return absl::NotFoundError(absl::StrCat(name, " does not exist"));
}

}  // namespace luthier
