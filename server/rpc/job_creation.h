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

// The same for a call that waits. `body`: by what a repeated request is known; empty: by `request`. `refused`: what is
// wrong with that of which the request was made, to be said with what is wrong with it.
absl::Status SubmitJob(Backend& backend, Call& call, const v1::CreateFineTuningJobRequest& request,
                       v1::FineTuningJob& response, std::string body = "",
                       const absl::Status& refused = absl::OkStatus());

}  // namespace luthier
