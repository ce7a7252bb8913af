// What luthierd is told: flags beat environment beat file beat defaults.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace luthier {

// What luthierd is started for.
enum class ServerAction { kServe, kCheck, kRestore, kAdminToken };

struct ServerOptions {
  ServerAction action = ServerAction::kServe;
  std::string backup;          // absolute: of kRestore
  std::string token = "root";  // of kAdminToken
  bool json = false;           // what kCheck found, for programs
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:9464";
  std::string data_dir;  // absolute
  bool with_local_worker = false;
  bool trust_network = false;
  bool allow_network_disk = false;
  // Files; empty: no TLS, or none is wanted of callers.
  std::string tls_cert, tls_key, tls_client_ca;
  std::string worker_metrics_listen = "127.0.0.1:0";
  // s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX; empty: in the data folder.
  std::string artifact_store;
  int64_t artifact_cache_limit = int64_t{50} << 30;
  absl::Duration keep_unused = absl::Hours(1);
  int64_t max_dataset_size = int64_t{100} << 30;
  int tenant_watchers = 5000;
  int keep_versions = 0;  // newest versions of a model; 0: all
  absl::Duration preempt_after = absl::Minutes(10);
  absl::Duration retention = absl::InfiniteDuration();
  absl::Duration idle_timeout = absl::Minutes(5);
};

// The options, or the exit code of a run that is over already (--help, --version, a wrong flag), after its text was
// printed. Errors: INVALID_ARGUMENT for a value or a file that cannot be used.
absl::StatusOr<std::variant<ServerOptions, int>> ReadOptions(int argc, char** argv);

}  // namespace luthier
