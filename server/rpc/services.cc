#include "server/rpc/services.h"

#include "google/protobuf/message.h"
#include "grpc/health/v1/health.pb.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/models.grpc.pb.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "luthier/v1/sweeps.grpc.pb.h"
#include "luthier/v1/worker.grpc.pb.h"

namespace luthier {

std::vector<std::unique_ptr<grpc::Service>> MakeServices(Backend& backend, Sessions& sessions) {
  std::vector<std::unique_ptr<grpc::Service>> services;
  services.push_back(MakeFineTuningService(backend));
  services.push_back(MakeDatasetService(backend));
  services.push_back(MakeModelService(backend));
  services.push_back(MakeNodeService(backend));
  services.push_back(MakeQueueService(backend));
  services.push_back(MakeSweepService(backend));
  services.push_back(MakeAdminService(backend));
  services.push_back(MakeWorkerService(backend, sessions));
  return services;
}

std::vector<std::string> ServiceNames() {
  return {v1::FineTuningService::service_full_name(), v1::DatasetService::service_full_name(),
          v1::ModelService::service_full_name(),      v1::NodeService::service_full_name(),
          v1::QueueService::service_full_name(),      v1::SweepService::service_full_name(),
          v1::AdminService::service_full_name(),      v1::WorkerService::service_full_name()};
}

void DescribeHealthChecks() { google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>(); }

}  // namespace luthier
