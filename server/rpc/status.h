// Errors on their way out.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace luthier {

// The same code and message, with a google.rpc.Status of details: ErrorInfo always (the reason given with WithReason(),
// else the code's name), every line of an INVALID_ARGUMENT as a violation of a BadRequest, RetryInfo where trying again
// helps.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace luthier
