// What every handler does around its work: admit the call, note and measure it, and turn its status into gRPC's.
#pragma once

#include "absl/time/clock.h"
#include "server/rpc/backend.h"
#include "server/rpc/status.h"

namespace luthier {

// `work` takes the Call, and may set its subject.
template <typename Work>
grpc::Status Handle(const Backend& backend, const grpc::ServerContext& context, absl::string_view method, Work work) {
  const absl::Time start = absl::Now();
  absl::StatusOr<Call> call = backend.access.Admit(context, method);
  absl::Status result = call.status();
  if (call.ok()) {
    result = work(*call);
    backend.access.Note(method, *call, result);
  }
  const grpc::Status status = ToGrpcStatus(result);
  backend.metrics.ObserveCall(method, absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code())),
                              absl::Now() - start);
  return status;
}

}  // namespace luthier
