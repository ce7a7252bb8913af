// The services of the API. Streams that mostly wait (watches, sessions) use gRPC's callback API, since there may be ten
// thousand of them; the other handlers are synchronous. `backend` must outlive the services.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "grpcpp/impl/codegen/service_type.h"
#include "server/rpc/backend.h"
#include "server/rpc/sessions.h"

namespace luthier {

std::unique_ptr<grpc::Service> MakeFineTuningService(Backend& backend);
std::unique_ptr<grpc::Service> MakeDatasetService(Backend& backend);
std::unique_ptr<grpc::Service> MakeModelService(Backend& backend);
std::unique_ptr<grpc::Service> MakeNodeService(Backend& backend);
std::unique_ptr<grpc::Service> MakeQueueService(Backend& backend);
std::unique_ptr<grpc::Service> MakeSweepService(Backend& backend);
std::unique_ptr<grpc::Service> MakeAdminService(Backend& backend);
std::unique_ptr<grpc::Service> MakeWorkerService(Backend& backend, Sessions& sessions);

// All of them.
std::vector<std::unique_ptr<grpc::Service>> MakeServices(Backend& backend, Sessions& sessions);
// Their full names, for health checks.
std::vector<std::string> ServiceNames();

// Has reflection describe `grpc.health.v1.Health`, too, which gRPC 1.51 serves without a descriptor: `grpcurl describe`
// would fail at it.
void DescribeHealthChecks();

}  // namespace luthier
