#include "server/server.h"

#include <signal.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "lib/artifact/private_folder.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"
#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "server/artifacts.h"
#include "server/certificate.h"
#include "server/rpc/attempt_key.h"
#include "server/rpc/stored_files.h"
#include "server/store/network_disk.h"

namespace luthier {
namespace {

// Calls that are under way when the server ends.
constexpr std::chrono::seconds kCallGrace(5);
// Threads that stay for calls, which mostly wait for a commit together. gRPC's default of two would end and start one a
// call.
constexpr int kCallThreads = 64;
// Two disks' worth of reading for watchers that are behind; they also take submissions that ask the record.
constexpr int kTaskThreads = 2;
// Each reads a dataset with one core, which may take gigabytes; more at a time would take the cores from the calls that
// are quick.
constexpr int kPlanningThreads = 3;
// Of one tenant: what waits holds its request, and a sweep or an estimate a thread of gRPC. One thread is always left
// to others, whose plans may need milliseconds.
constexpr FairLimits kPlansOfTenant = {.waiting = 1000, .at_once = kPlanningThreads - 1};
// Each waits for the answer of a store that is far away, for minutes if it is out of reach.
constexpr int kStoringThreads = 2;
constexpr unsigned kCertificateRefreshSeconds = 1;
constexpr int kStreamsAConnection = 1000;
// What all calls together have in gRPC's buffers. Twenty thousand watches take 400 MB. Beyond it gRPC resets calls: a
// message is looked at, and its caller's token, only when it is whole, so anybody could fill the memory with such as
// never end.
constexpr size_t kBytesOfCalls = size_t{1} << 30;
// From a connection's first byte to the first settings of HTTP/2. A slow link needs one or two; whoever says nothing
// holds a file as long.
constexpr int kHandshakeMilliseconds = 10000;

// The binary's own folder, where its sister programs lie.
std::string BinFolder() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

bool IsPublic(const std::string& listen) {
  return !absl::StartsWith(listen, "127.") && !absl::StartsWith(listen, "localhost:") &&
         !absl::StartsWith(listen, "[::1]:");
}

void SayWhoMayCall(const ServerOptions& options, bool tokens) {
  if (IsPublic(options.listen) && options.tls_cert.empty()) {
    std::fprintf(
        stderr,
        "luthierd: %s is no loopback address, and connections are not encrypted: tokens can be read on the way; use a "
        "private network\n",
        options.listen.c_str());
  }
  if (tokens) return;
  std::fprintf(stderr,
               "luthierd: no tokens exist, so %s may do everything%s; `luthier admin token create ADMIN --role admin` "
               "makes the first\n",
               options.trust_network ? "whoever can connect" : "every user of this machine",
               options.trust_network ? "" : ", and nobody else anything");
}

void SayWhoMayRead(const std::string& data_dir) {
  const std::string warning = WarningIfOpen(data_dir);
  if (!warning.empty()) std::fprintf(stderr, "luthierd: %s\n", warning.c_str());
}

absl::Status CannotListen(absl::string_view option, absl::string_view address) {
  return absl::UnavailableError(
      absl::StrCat(option, ": cannot listen on ", address,
                   "; is another server running, or is it no address of this machine? Give a free port"));
}

// That it cannot listen gRPC logs in words of its own, before ours. Who wants these sets the variable.
std::unique_ptr<grpc::Server> StartQuietly(grpc::ServerBuilder& builder) {
  if (Environment("GRPC_VERBOSITY").empty()) gpr_set_log_function([](gpr_log_func_args*) {});
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  gpr_set_log_function(nullptr);  // gRPC's own again
  return server;
}

// `address` with the port that was really taken.
std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':') + 1), port);
}

// Files that are replaced count for the connections that come after; those that are open stay.
std::shared_ptr<grpc::ServerCredentials> Credentials(const ServerOptions& options) {
  using namespace grpc::experimental;  // NOLINT: it is where all of this is
  if (options.tls_cert.empty()) return grpc::InsecureServerCredentials();
  TlsServerCredentialsOptions tls(std::make_shared<FileWatcherCertificateProvider>(
      options.tls_key, options.tls_cert, options.tls_client_ca, kCertificateRefreshSeconds));
  tls.watch_identity_key_cert_pairs();
  if (!options.tls_client_ca.empty()) {
    tls.watch_root_certs();
    tls.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return TlsServerCredentials(tls);
}

void SetChannelArguments(grpc::ServerBuilder& builder, absl::Duration idle_timeout) {
  // Without this two servers would share a port, each getting half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMilliseconds);
  // A peer that vanished without a word is noticed within half a minute; its streams would otherwise stay for hours.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Agents and watching clients ping for the same reason; by default more than one ping in five minutes counts as
  // abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Pings are answered by programs that have forgotten their connection, too. Streams keep theirs, and who calls again
  // is back in milliseconds.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS,
                             static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(idle_timeout), INT_MAX)));
  // What one connection can have the server work on, or keep for streams that it does not read. Its further calls wait
  // on the client's side.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsAConnection);
  // gRPC unpacks a message before it looks at its size: a few kilobytes become gigabytes.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
}

// Read at every scrape: the file may have been replaced.
class CertificateMetric final : public prometheus::Collectable {
 public:
  explicit CertificateMetric(std::string path) : path_(std::move(path)) {}
  std::vector<prometheus::MetricFamily> Collect() const override {
    const absl::Time end = path_.empty() ? absl::UnixEpoch() : CertificateEnd(path_).value_or(absl::UnixEpoch());
    prometheus::ClientMetric metric;
    metric.gauge.value = absl::ToDoubleSeconds(end - absl::UnixEpoch());
    return {{"luthier_tls_certificate_expiry_timestamp_seconds",
             "When the certificate of --tls-cert expires; 0 without one",
             prometheus::MetricType::Gauge,
             {metric}}};
  }

 private:
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  LUTHIER_RETURN_IF_ERROR(CreatePrivateFolder(options.data_dir));
  if (!options.allow_network_disk) LUTHIER_RETURN_IF_ERROR(CheckLocalDisk(options.data_dir));
  if (!options.tls_cert.empty()) LUTHIER_RETURN_IF_ERROR(CheckCertificate(options.tls_cert, absl::Now()));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Store> store, Store::Open(options.data_dir, Store::kCheckedAtStart));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<ArtifactStore> artifacts, OpenArtifacts(options));
  LUTHIER_RETURN_IF_ERROR(CountOlderFiles(*store));
  LUTHIER_ASSIGN_OR_RETURN(State state, store->LoadState(absl::Now(), {.preempt_after = options.preempt_after}));
  LUTHIER_ASSIGN_OR_RETURN(std::vector<Token> tokens, store->Tokens());
  const bool any_tokens = !tokens.empty();
  LUTHIER_ASSIGN_OR_RETURN(std::string attempt_key, AttemptKeyOf(options.data_dir));
  std::unique_ptr<Server> server(new Server(options, std::move(store), std::move(artifacts), std::move(state),
                                            std::move(tokens), std::move(attempt_key)));
  LUTHIER_RETURN_IF_ERROR(server->Listen(options));
  SayWhoMayCall(options, any_tokens);
  SayWhoMayRead(options.data_dir);
  return server;
}

Server::Server(const ServerOptions& options, std::unique_ptr<Store> store, std::unique_ptr<ArtifactStore> artifacts,
               State state, std::vector<Token> tokens, std::string attempt_key)
    : store_(std::move(store)),
      artifacts_(std::move(artifacts)),
      registry_(std::make_shared<prometheus::Registry>()),
      metrics_(*registry_, LUTHIER_VERSION),
      access_(std::move(tokens), {.trust_network = options.trust_network,
                                  .audit = {.path = options.data_dir + "/audit.log"},
                                  .attempt_key = std::move(attempt_key)}),
      watches_(static_cast<size_t>(options.tenant_watchers)),
      tasks_(kTaskThreads),
      planning_(kPlanningThreads, kPlansOfTenant),
      storing_(kStoringThreads),
      loop_(*store_, std::move(state), LoopOptions()),
      planner_(*store_, *artifacts_, planning_, options.data_dir, "/proc/self/exe"),
      housekeeping_(
          loop_, *store_, *artifacts_,
          {.keep_unused = options.keep_unused, .retention = options.retention, .keep_versions = options.keep_versions}),
      backend_{loop_,    *store_,       *artifacts_, planner_, watches_,   tasks_,           planning_,
               storing_, housekeeping_, metrics_,    access_,  transfers_, options.data_dir, options.max_dataset_size} {
}

Server::~Server() { Shutdown(); }

StateLoop::Options Server::LoopOptions() {
  StateLoop::Options options;
  options.on_batch = [this](const State& state, const Writes& writes, absl::Time now) {
    metrics_.ObserveBatch(state, writes, now);
    watches_.Publish(writes.events);
  };
  options.send = [this](const std::vector<Effect>& effects) { sessions_.Send(loop_, *store_, access_, effects); };
  options.on_commit_time = [this](absl::Duration duration, size_t batch) { metrics_.ObserveCommit(duration, batch); };
  options.on_log_bytes = [this](int64_t bytes) { metrics_.ObserveLog(bytes); };
  options.on_refusal = [](const absl::Status& status) {
    const std::string what = status.ok() ? "new things are recorded again" : std::string(status.message());
    std::fprintf(stderr, "luthierd: %s\n", what.c_str());
  };
  options.on_failure = [this](const absl::Status& status) {
    std::fprintf(stderr, "luthierd: ending: %s\n", std::string(status.message()).c_str());
    failed_ = true;
    kill(getpid(), SIGTERM);
  };
  return options;
}

absl::Status Server::ServeMetrics(const ServerOptions& options) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(options.metrics_listen, /*num_threads=*/2);
  } catch (const std::exception&) {
    return CannotListen("--metrics-listen", options.metrics_listen);
  }
  exposer_->RegisterCollectable(registry_);
  certificate_ = std::make_shared<CertificateMetric>(options.tls_cert);
  exposer_->RegisterCollectable(certificate_);
  return absl::OkStatus();
}

void Server::StartLocalWorker(const ServerOptions& options, const std::string& address) {
  std::vector<std::string> command = {BinFolder() + "/luthier-worker",
                                      "--server",
                                      address,
                                      "--data-dir",
                                      options.data_dir + "/worker",
                                      "--metrics-listen",
                                      options.worker_metrics_listen};
  if (options.artifact_store.empty()) {
    command.insert(command.end(), {"--shared-store", LocalArtifacts(options.data_dir)});
  }
  worker_ = std::make_unique<LocalWorker>(access_.MakeAgentSecret(), std::move(command));
}

absl::Status Server::Listen(const ServerOptions& options) {
  LUTHIER_RETURN_IF_ERROR(ServeMetrics(options));
  const std::string metrics_address = WithPort(options.metrics_listen, exposer_->GetListeningPorts()[0]);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  DescribeHealthChecks();
  grpc::ServerBuilder builder;
  SetChannelArguments(builder, options.idle_timeout);
  builder.SetResourceQuota(grpc::ResourceQuota("luthierd").Resize(kBytesOfCalls));
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, kCallThreads);
  int port = 0;
  builder.AddListeningPort(options.listen, Credentials(options), &port);
  // The agent beside the server needs no certificate: a socket in the data folder is for who owns the folder.
  const std::string socket = "unix:" + options.data_dir + "/luthierd.sock";
  const bool by_socket = !options.tls_cert.empty() && options.with_local_worker;
  if (by_socket && socket.size() - strlen("unix:") >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--data-dir: ", options.data_dir,
                     " is too long a path for the socket of the local agent, luthierd.sock "
                     "in it; give one of at most 90 characters"));
  }
  if (by_socket) builder.AddListeningPort(socket, grpc::InsecureServerCredentials());
  services_ = MakeServices(backend_, sessions_);
  for (const auto& service : services_) builder.RegisterService(service.get());
  grpc_ = StartQuietly(builder);
  if (grpc_ == nullptr || port == 0) return CannotListen("--listen", options.listen);
  for (const std::string& name : ServiceNames()) grpc_->GetHealthCheckService()->SetServingStatus(name, true);
  const std::string address = WithPort(options.listen, port);
  std::fprintf(stderr, "luthierd %s serves on %s, metrics on http://%s/metrics, data in %s (SQLite %s, gRPC %s)\n",
               LUTHIER_VERSION, address.c_str(), metrics_address.c_str(), options.data_dir.c_str(),
               Store::SqliteVersion().c_str(), grpc::Version().c_str());
  if (!artifacts_->Address().empty())
    std::fprintf(stderr, "luthierd: datasets, models and artifacts in %s\n", artifacts_->Address().c_str());
  if (options.with_local_worker) StartLocalWorker(options, by_socket ? socket : address);
  return absl::OkStatus();
}

void Server::Shutdown() {
  if (grpc_ == nullptr) return;
  grpc_->GetHealthCheckService()->SetServingStatus(false);
  worker_.reset();  // while it can still report where its trainers stopped
  watches_.Close();
  sessions_.Close();
  planner_.Stop();  // before gRPC waits for the calls that wait for rows
  grpc_->Shutdown(std::chrono::system_clock::now() + kCallGrace);
  grpc_->Wait();
  grpc_.reset();
  loop_.Stop();
}

}  // namespace luthier
