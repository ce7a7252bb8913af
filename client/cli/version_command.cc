#include "client/cli/command.h"
#include "grpcpp/grpcpp.h"

namespace luthier {

void AddVersionCommand(CLI::App& app, CommandContext& context) {
  context.AddCommand(app, "version", "Show the version", "  luthier version\n", [&context] {
    if (context.ForPrograms()) {
      context.PrintForPrograms({{"version", LUTHIER_VERSION}, {"grpc", grpc::Version()}});
    } else {
      context.out() << "luthier " LUTHIER_VERSION " (gRPC " << grpc::Version() << ")\n";
    }
    return absl::OkStatus();
  });
}

}  // namespace luthier
