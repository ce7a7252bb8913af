#include "server/rpc/services.h"

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

}  // namespace luthier
