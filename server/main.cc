// luthierd: flags, wiring, and a clean end.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "prometheus/exposer.h"
#include "server/local_worker.h"
#include "server/metrics/server_metrics.h"
#include "server/rpc/services.h"
#include "yaml-cpp/yaml.h"

namespace luthier {
namespace {

struct ServerOptions {
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:9464";
  std::string data_dir;
  bool with_local_worker = false;
  std::string worker_metrics_listen = "127.0.0.1:0";
};

// The binary's own folder, where its sister programs lie.
std::string BinFolder() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

void WarnIfPublic(const std::string& listen) {
  if (absl::StartsWith(listen, "127.") || absl::StartsWith(listen, "localhost:") || absl::StartsWith(listen, "[::1]:")) {
    return;
  }
  std::fprintf(stderr, "luthierd: %s is no loopback address, and connections are neither encrypted nor authenticated; use "
               "a private network\n", listen.c_str());
}

absl::Status Serve(const ServerOptions& options, const sigset_t& signals) {
  WarnIfPublic(options.listen);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(options.data_dir));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(options.data_dir));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<FileArtifactStore> artifacts,
                           FileArtifactStore::Open(options.data_dir + "/artifacts"));
  LUTHIER_ASSIGN_OR_RETURN(State state, store->LoadState(absl::Now()));

  const auto registry = std::make_shared<prometheus::Registry>();
  ServerMetrics metrics(*registry, LUTHIER_VERSION);
  std::unique_ptr<prometheus::Exposer> exposer;
  try {
    exposer = std::make_unique<prometheus::Exposer>(options.metrics_listen, /*num_threads=*/2);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("--metrics-listen: cannot listen on ", options.metrics_listen,
                                               "; is another server running? Give a free port"));
  }
  exposer->RegisterCollectable(registry);

  Sessions sessions;
  StateLoop::Options loop_options;
  loop_options.send = [&](const std::vector<Effect>& effects) { sessions.Send(*store, effects); };
  loop_options.on_commit = [&](const State& now) { metrics.ObserveState(now, absl::Now()); };
  loop_options.on_commit_time = [&](absl::Duration duration, size_t batch) { metrics.ObserveCommit(duration, batch); };
  StateLoop loop(*store, std::move(state), std::move(loop_options));
  Backend backend{loop, *store, *artifacts, options.data_dir,
                  [&](absl::string_view method, int code, absl::Duration time) { metrics.ObserveCall(method, code, time); }};

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Without this two servers would share a port, each getting half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Agents and clients ping to notice a dead connection; without this a ping more than every five minutes counts as abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  const std::unique_ptr<grpc::Service> services[] = {MakeFineTuningService(backend), MakeDatasetService(backend),
                                                     MakeModelService(backend), MakeNodeService(backend),
                                                     MakeWorkerService(backend, sessions)};
  for (const auto& service : services) builder.RegisterService(service.get());
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("--listen: cannot listen on ", options.listen,
                                               "; is another server running? Give a free port"));
  }
  const std::string address = options.listen.substr(0, options.listen.rfind(':') + 1) + std::to_string(port);
  std::fprintf(stderr, "luthierd %s serves on %s, metrics on port %d, data in %s (SQLite %s, gRPC %s)\n",
               LUTHIER_VERSION, address.c_str(), exposer->GetListeningPorts().at(0), options.data_dir.c_str(),
               Store::SqliteVersion().c_str(), grpc::Version().c_str());

  std::unique_ptr<LocalWorker> worker;
  if (options.with_local_worker) {
    worker = std::make_unique<LocalWorker>(std::vector<std::string>{
        BinFolder() + "/luthier-worker", "--server", address, "--data-dir", options.data_dir + "/worker", "--shared-store",
        options.data_dir + "/artifacts", "--metrics-listen", options.worker_metrics_listen});
  }
  int signal = 0;
  sigwait(&signals, &signal);
  std::fprintf(stderr, "luthierd: shutting down\n");
  worker.reset();
  loop.Stop();
  sessions.CloseAll();
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
  return absl::OkStatus();
}

// Values of the file for options that neither a flag nor the environment gave.
absl::Status ReadConfig(const std::string& path, CLI::App& app, ServerOptions& options) {
  try {
    for (const auto& entry : YAML::LoadFile(path)) {
      const auto key = entry.first.as<std::string>();
      const CLI::Option* flag = app.get_option_no_throw("--" + key);
      if (flag == nullptr || key == "config" || key == "help" || key == "version") {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": '", key, "' is unknown; known are listen, metrics-listen, data-dir, with-local-worker, "
                         "worker-metrics-listen"));
      }
      if (flag->count() > 0) continue;
      if (key == "listen") options.listen = entry.second.as<std::string>();
      if (key == "metrics-listen") options.metrics_listen = entry.second.as<std::string>();
      if (key == "data-dir") options.data_dir = entry.second.as<std::string>();
      if (key == "with-local-worker") options.with_local_worker = entry.second.as<bool>();
      if (key == "worker-metrics-listen") options.worker_metrics_listen = entry.second.as<std::string>();
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("--config: ", path, " cannot be read: ", error.what()));
  }
  return absl::OkStatus();
}

std::string DefaultDataDir() {
  const char* home = std::getenv("HOME");
  return absl::StrCat(home == nullptr ? "." : home, "/.luthier/server");
}

int Main(int argc, char** argv) {
  ServerOptions options;
  options.data_dir = DefaultDataDir();
  std::string config;
  CLI::App app("The Luthier server: takes fine-tuning jobs and gives them to agents.", "luthierd");
  app.set_version_flag("--version", LUTHIER_VERSION);
  app.add_option("--listen", options.listen, "Address of the API")->envname("LUTHIER_LISTEN")->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen, "Address of /metrics")
      ->envname("LUTHIER_METRICS_LISTEN")->capture_default_str();
  app.add_option("--data-dir", options.data_dir, "Folder of everything that must not be lost")
      ->envname("LUTHIER_DATA_DIR")->capture_default_str();
  app.add_flag("--with-local-worker", options.with_local_worker, "Also start an agent on this machine");
  app.add_option("--worker-metrics-listen", options.worker_metrics_listen, "Address of that agent's /metrics; port 0: any free one")
      ->envname("LUTHIER_WORKER_METRICS_LISTEN")->capture_default_str();
  app.add_option("--config", config, "YAML file with the same names; flags beat environment beat file")
      ->envname("LUTHIER_CONFIG");
  CLI11_PARSE(app, argc, argv);

  // Blocked before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::Status status = config.empty() ? absl::OkStatus() : ReadConfig(config, app, options);
  if (status.ok()) {
    options.data_dir = std::filesystem::absolute(options.data_dir);
    status = Serve(options, signals);
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "luthierd: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::Main(argc, argv); }
