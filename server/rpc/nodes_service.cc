#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "luthier/v1/nodes.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

class NodesService final : public v1::NodeService::Service {
 public:
  explicit NodesService(Backend& backend) : backend_(backend) {}

  grpc::Status ListNodes(grpc::ServerContext* context, const v1::ListNodesRequest* request,
                         v1::ListNodesResponse* response) override {
    return Handle(backend_, *context, "ListNodes", [&](Call& call) -> absl::Status {
      std::vector<v1::Node> nodes;
      LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) {
        for (const auto& [id, node] : state.nodes()) {
          nodes.push_back(ToProto(node, state, now));
          if (!call.tenant.empty()) HideOthers(call, state, nodes.back());
        }
        return absl::OkStatus();
      }));
      const auto by_name = [](const v1::Node& node) { return Position(0, node.name()); };
      return AddPage("nodes", *request, *response, nodes, by_name,
                     [&](const v1::Node& node) -> auto& { return *response->add_nodes() = node; });
    });
  }
  grpc::Status DrainNode(grpc::ServerContext* context, const v1::DrainNodeRequest* request,
                         v1::Node* response) override {
    return Handle(backend_, *context, "DrainNode", [&](Call& call) {
      return Change(call, request->name(), *response, [&](State& state, const std::string& id, absl::Time now) {
        return state.Drain(id, request->requeue(), now);
      });
    });
  }
  grpc::Status UndrainNode(grpc::ServerContext* context, const v1::UndrainNodeRequest* request,
                           v1::Node* response) override {
    return Handle(backend_, *context, "UndrainNode", [&](Call& call) {
      return Change(call, request->name(), *response,
                    [](State& state, const std::string& id, absl::Time) { return state.Undrain(id); });
    });
  }

 private:
  // What other tenants run is no business of the caller's.
  static void HideOthers(const Call& call, const State& state, v1::Node& node) {
    auto& attempts = *node.mutable_attempts();
    const auto others = std::remove_if(attempts.begin(), attempts.end(), [&](const std::string& name) {
      const std::optional<AttemptId> attempt = ParseAttemptName(name);
      const Job* job = attempt ? state.Find(attempt->job) : nullptr;
      return job == nullptr || !call.Sees(job->tenant);
    });
    attempts.erase(others, attempts.end());
  }

  template <typename Step>
  absl::Status Change(Call& call, const std::string& name, v1::Node& response, Step step) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "nodes", name));
    return backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      LUTHIER_RETURN_IF_ERROR(step(state, id, now));
      const auto node = state.nodes().find(id);
      if (node != state.nodes().end()) {
        response = ToProto(node->second, state, now);
      } else {
        response.set_name(name);
        response.set_state(v1::Node::DISCONNECTED);
        response.set_state_reason("its agent has not come back since the server was started");
      }
      return absl::OkStatus();
    });
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeNodeService(Backend& backend) { return std::make_unique<NodesService>(backend); }

}  // namespace luthier
