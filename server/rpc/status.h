// Errors on their way out.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace luthier {

// The same code and message; the lines of an INVALID_ARGUMENT also as violations of a google.rpc.BadRequest.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace luthier
