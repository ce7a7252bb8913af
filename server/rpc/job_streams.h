// The streams of a job's events: the watch, its metrics, its log.
#pragma once

#include "grpcpp/support/server_callback.h"
#include "luthier/v1/jobs.pb.h"
#include "server/rpc/backend.h"

namespace luthier {

// Each begins at a cursor and sends every event of its kind from there on, in order, without gaps, until the job is
// over. Nothing is kept for a slow reader but a few shared events: what it has missed is read from the record when it
// catches up.
grpc::ServerWriteReactor<v1::WatchFineTuningJobResponse>* StartJobWatch(Backend& backend,
                                                                        const grpc::ServerContextBase& context,
                                                                        const v1::WatchFineTuningJobRequest& request);
grpc::ServerWriteReactor<v1::StreamJobMetricsResponse>* StartJobMetrics(Backend& backend,
                                                                        const grpc::ServerContextBase& context,
                                                                        const v1::StreamJobMetricsRequest& request);
grpc::ServerWriteReactor<v1::TailJobLogsResponse>* StartJobLogs(Backend& backend,
                                                                const grpc::ServerContextBase& context,
                                                                const v1::TailJobLogsRequest& request);

}  // namespace luthier
