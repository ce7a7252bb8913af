// One WatchFineTuningJob stream.
#pragma once

#include <cstdint>
#include <string>

#include "grpcpp/support/server_callback.h"
#include "luthier/v1/jobs.pb.h"
#include "server/rpc/backend.h"

namespace luthier {

// Starts a stream that sends the job, every event after `after`, and the job again once it is over. Nothing is kept for a slow
// reader but a few shared events: what it has missed is read from the record when it catches up.
grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* StartJobWatch(Backend& backend, const std::string& name, int64_t after);

}  // namespace luthier
