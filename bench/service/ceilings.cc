#include <SQLiteCpp/SQLiteCpp.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "absl/time/clock.h"
#include "bench/service/installation.h"
#include "bench/service/scenarios.h"

namespace luthier {
namespace {

constexpr absl::Duration kTime = absl::Seconds(3);
// About what the record keeps of one job.
constexpr int kSpecBytes = 2500;

// Answers at once with the same messages as the server.
class BareService final : public v1::FineTuningService::CallbackService {
  grpc::ServerUnaryReactor* CreateFineTuningJob(grpc::CallbackServerContext* context,
                                                const v1::CreateFineTuningJobRequest* request,
                                                v1::FineTuningJob* response) override {
    *response = request->job();
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

// `bench-service --bare-grpc` as a process of its own: in one process client and server would share more than a
// machine.
double BareGrpc(const BenchOptions& options) {
  int to_child[2], from_child[2];
  Require(pipe2(to_child, O_CLOEXEC) == 0 && pipe2(from_child, O_CLOEXEC) == 0, "no pipes");
  const pid_t child = fork();
  if (child == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    execl("/proc/self/exe", "bench-service", "--bare-grpc", nullptr);
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  char address[64] = {};
  Require(read(from_child[0], address, sizeof address - 1) > 0, "the bare gRPC server does not start");
  const auto channels = ConnectTo(address, options.callers);
  v1::CreateFineTuningJobRequest request;
  request.mutable_job()->mutable_spec()->set_base_model("base");
  CallForAWhile(channels, request, options.callers, absl::Milliseconds(500));
  const Submitted answered = CallForAWhile(channels, request, options.callers, kTime);
  close(to_child[1]);
  close(from_child[0]);
  waitpid(child, nullptr, 0);
  return answered.PerSecond();
}

// Rows of a job's size into two tables, one durable transaction for as many jobs as there are callers.
double BareSqlite(const BenchOptions& options) {
  const std::string path = options.folder + "/bare.db";
  double rate = 0;
  {
    SQLite::Database database(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
    database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
    database.exec(
        "CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT; CREATE UNIQUE INDEX ids ON jobs "
        "(id); "
        "CREATE TABLE specs (job INTEGER PRIMARY KEY, spec BLOB NOT NULL) STRICT");
    SQLite::Statement job(database, "INSERT INTO jobs VALUES (?, ?)"),
        spec(database, "INSERT INTO specs VALUES (?, ?)");
    const std::string bytes(kSpecBytes, 's');
    const absl::Time start = absl::Now();
    int64_t number = 0;
    while (absl::Now() - start < kTime) {
      SQLite::Transaction transaction(database);
      for (int i = 0; i < options.callers; ++i) {
        job.reset();
        job.bind(1, ++number);
        job.bind(2, "job-" + std::to_string(number));
        job.exec();
        spec.reset();
        spec.bind(1, number);
        spec.bindNoCopy(2, static_cast<const void*>(bytes.data()), kSpecBytes);
        spec.exec();
      }
      transaction.commit();
    }
    rate = static_cast<double>(number) / absl::ToDoubleSeconds(absl::Now() - start);
  }
  for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path + suffix);
  return rate;
}

}  // namespace

int ServeBareGrpc() {
  BareService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::printf("127.0.0.1:%d", port);
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

void AddCeilings(const BenchOptions& options, Json& result) {
  result["bare_grpc_per_s"] = BareGrpc(options);
  result["bare_sqlite_jobs_per_s"] = BareSqlite(options);
}

}  // namespace luthier
