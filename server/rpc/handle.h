// What every handler does around its work: admit the call, note and measure it, and turn its status into gRPC's.
#pragma once

#include "absl/time/clock.h"
#include "server/rpc/backend.h"
#include "server/rpc/status.h"

namespace luthier {

// One call, from its first moment to its last.
class Handling {
 public:
  Handling(const Backend& backend, const grpc::ServerContextBase& context, absl::string_view method)
      : backend_(backend), method_(method), start_(absl::Now()) {
    absl::StatusOr<Call> call = backend.access.Admit(context, method);
    admitted_ = call.status();
    if (call.ok()) call_ = *std::move(call);
  }

  // Errors: those of Access::Admit; the call is then over.
  const absl::Status& admitted() const { return admitted_; }
  // Of a call that was not admitted it says nothing. Its subject may be set.
  Call& call() { return call_; }

  // Once, on any thread.
  grpc::Status Finish(const absl::Status& result) {
    if (admitted_.ok()) backend_.access.Note(method_, call_, result);
    backend_.metrics.ObserveCall(method_, result.code(), absl::Now() - start_);
    return ToGrpcStatus(result);
  }

 private:
  const Backend& backend_;
  const absl::string_view method_;
  const absl::Time start_;
  absl::Status admitted_;
  Call call_;
};

// `work` takes the Call, and may set its subject.
template <typename Work>
grpc::Status Handle(const Backend& backend, const grpc::ServerContext& context, absl::string_view method, Work work) {
  Handling handling(backend, context, method);
  return handling.Finish(handling.admitted().ok() ? work(handling.call()) : handling.admitted());
}

}  // namespace luthier
