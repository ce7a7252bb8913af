// Deadlines by the clock that nobody sets.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "lib/base/steady_now.h"

namespace luthier {

// `deadline`: of SteadyNow(). gRPC takes a time of day, and counts down from the call's start whatever becomes of that.
inline void SetCallDeadline(grpc::ClientContext& context, absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + (deadline - SteadyNow())));
}

}  // namespace luthier
