// luthierd: starts the server, waits for the signal to end, ends it.
#include <signal.h>

#include <cstdio>
#include <memory>
#include <string>
#include <variant>

#include "server/options.h"
#include "server/server.h"

namespace luthier {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "luthierd: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Main(int argc, char** argv) {
  const absl::StatusOr<std::variant<ServerOptions, int>> options = ReadOptions(argc, argv);
  if (!options.ok()) return Fail(options.status());
  if (const int* exit_code = std::get_if<int>(&*options)) return *exit_code;

  // Blocked before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(std::get<ServerOptions>(*options));
  if (!server.ok()) return Fail(server.status());
  int signal = 0;
  sigwait(&signals, &signal);
  std::fprintf(stderr, "luthierd: shutting down\n");
  (*server)->Shutdown();
  return (*server)->failed() ? 1 : 0;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::Main(argc, argv); }
