// Everything luthierd consists of, in the order in which it comes up.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/server.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "server/local_worker.h"
#include "server/options.h"
#include "server/rpc/services.h"

namespace luthier {

class Server {
 public:
  // Serves when it returns. Errors name the option, the value and the remedy.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  ~Server();

  // Ends: says NOT_SERVING, lets the local agent finish, ends streams and the reading of rows, gives calls 5 s.
  void Shutdown();
  // The database failed and the server ended itself.
  bool failed() const { return failed_; }

 private:
  Server(const ServerOptions& options, std::unique_ptr<Store> store, std::unique_ptr<ArtifactStore> artifacts,
         State state, std::vector<Token> tokens, std::string attempt_key);
  absl::Status Listen(const ServerOptions& options);
  absl::Status ServeMetrics(const ServerOptions& options);
  // `address`: where the agent finds this server.
  void StartLocalWorker(const ServerOptions& options, const std::string& address);
  StateLoop::Options LoopOptions();

  std::atomic<bool> failed_ = false;
  std::unique_ptr<Store> store_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::shared_ptr<prometheus::Registry> registry_;
  ServerMetrics metrics_;
  Access access_;
  Transfers transfers_{access_, {}};
  Sessions sessions_;
  WatchHub watches_;
  TaskPool tasks_, planning_, storing_;
  StateLoop loop_;
  Planner planner_;
  Housekeeping housekeeping_;
  Backend backend_;
  std::shared_ptr<prometheus::Collectable> certificate_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<LocalWorker> worker_;
};

}  // namespace luthier
