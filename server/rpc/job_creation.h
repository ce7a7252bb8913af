// How a job is created for a call: prepared, then recorded by the loop, then answered.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "luthier/v1/jobs.pb.h"
#include "server/rpc/backend.h"

namespace luthier {

// CreateFineTuningJob, in bytes, since most of what it answers was serialized with the plan. gRPC's thread admits it, a
// planning thread plans it if its spec is new, the loop records and answers it; a task answers a repeated one.
grpc::ServerUnaryReactor* StartJobCreation(Backend& backend, grpc::CallbackServerContext& context,
                                           const grpc::ByteBuffer& request, grpc::ByteBuffer& response);

// The same for a call that waits. `body`: by what a repeated request is known; empty: by `request`.
absl::Status SubmitJob(Backend& backend, Call& call, const v1::CreateFineTuningJobRequest& request,
                       v1::FineTuningJob& response, std::string body = "");

}  // namespace luthier
