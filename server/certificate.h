// The server's certificate, as far as the server itself has to look at it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace luthier {

// When the first certificate in a PEM file expires. INVALID_ARGUMENT if there is none.
absl::StatusOr<absl::Time> CertificateEnd(const std::string& path);

// FAILED_PRECONDITION if it has expired: no caller would take it, and each would say something else.
absl::Status CheckCertificate(const std::string& path, absl::Time now);

}  // namespace luthier
