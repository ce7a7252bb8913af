// What every handler does around its work: measure it, and turn its status into gRPC's.
#pragma once

#include "absl/time/clock.h"
#include "server/rpc/backend.h"
#include "server/rpc/status.h"

namespace luthier {

template <typename Work>
grpc::Status Handle(const Backend& backend, absl::string_view method, Work work) {
  const absl::Time start = absl::Now();
  const grpc::Status status = ToGrpcStatus(work());
  backend.metrics.ObserveCall(method, absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code())), absl::Now() - start);
  return status;
}

}  // namespace luthier
