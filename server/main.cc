// luthierd: starts the server, waits for the signal to end, ends it; or checks, restores or opens its data, or
// checks rows for a server.
#include <signal.h>
#include <sys/resource.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <variant>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "lib/base/openssl_at_exit.h"
#include "server/artifacts.h"
#include "server/options.h"
#include "server/rows/row_check.h"
#include "server/rpc/admin_token.h"
#include "server/rpc/backup.h"
#include "server/server.h"

namespace luthier {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "luthierd: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Check(const ServerOptions& options) {
  const absl::StatusOr<std::unique_ptr<ArtifactStore>> bucket = OpenBucketToRead(options);
  if (!bucket.ok()) return Fail(bucket.status());
  const absl::StatusOr<DataFacts> facts = CheckFolder(options.data_dir, bucket->get());
  if (!facts.ok()) return Fail(facts.status());
  if (options.json) {
    std::printf("{\"jobs\": %lld, \"files\": %zu, \"size_bytes\": %lld}\n", static_cast<long long>(facts->jobs),
                facts->files.size(), static_cast<long long>(facts->bytes()));
    return 0;
  }
  const std::string where = facts->bucket.empty() ? "" : " in " + facts->bucket;
  std::printf("%s: %lld jobs and %zu stored files%s, %lld bytes %s, nothing is damaged\n", options.data_dir.c_str(),
              static_cast<long long>(facts->jobs), facts->files.size(), where.c_str(),
              static_cast<long long>(facts->bytes()), where.empty() ? "in all" : "here");
  return 0;
}

int Restore(const ServerOptions& options) {
  const auto open_store = [&](const std::string& bucket) { return OpenArtifacts(options, bucket); };
  const absl::StatusOr<DataFacts> facts = RestoreBackup(options.backup, options.data_dir, open_store, absl::Now());
  if (!facts.ok()) return Fail(facts.status());
  std::printf(
      "%s: %lld jobs and %zu stored files as they were at %s, epoch %d; attempts of before end when their agents come "
      "back\n",
      options.data_dir.c_str(), static_cast<long long>(facts->jobs), facts->files.size(),
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", facts->create_time, absl::UTCTimeZone()).c_str(), facts->epoch);
  return 0;
}

int MakeAdminToken(const ServerOptions& options) {
  const absl::StatusOr<std::string> secret = ReplaceAdminToken(options.data_dir, options.token, absl::Now());
  if (!secret.ok()) return Fail(secret.status());
  std::printf("%s\n", secret->c_str());
  std::fprintf(stderr, "luthierd: this is the secret of tokens/%s, shown once; an earlier one is worthless\n",
               options.token.c_str());
  return 0;
}

// Every connection is a file (server/accept.cc): as many as we may have, not the 1,024 that a login shell gives.
void TakeAllFiles() {
  rlimit files = {};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

int Main(int argc, char** argv) {
  // What a server starts, not a user: it is in no help.
  if (argc == 3 && std::string(argv[1]) == "check-rows") return AnswerRowCheck(argv[2]);
  const absl::StatusOr<std::variant<ServerOptions, int>> read = ReadOptions(argc, argv);
  if (!read.ok()) return Fail(read.status());
  if (const int* exit_code = std::get_if<int>(&*read)) return *exit_code;
  const auto& options = std::get<ServerOptions>(*read);
  if (options.action == ServerAction::kCheck) return Check(options);
  if (options.action == ServerAction::kRestore) return Restore(options);
  if (options.action == ServerAction::kAdminToken) return MakeAdminToken(options);

  TakeAllFiles();
  // Debian builds Abseil with its search for deadlocks, which gRPC then pays for at each of its locks.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Blocked before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) return Fail(server.status());
  int signal = 0;
  sigwait(&signals, &signal);
  std::fprintf(stderr, "luthierd: shutting down\n");
  (*server)->Shutdown();
  return (*server)->failed() ? 1 : 0;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) {
  luthier::LeaveOpenSslAtExit();
  try {
    return luthier::Main(argc, argv);
  } catch (const std::exception& error) {  // of std::filesystem, about a folder that our user must not see
    std::fprintf(stderr, "luthierd: %s\n", error.what());
    return 1;
  }
}
