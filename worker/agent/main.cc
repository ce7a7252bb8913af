// luthier-worker: flags, wiring, and a clean end.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/data_dir.h"
#include "lib/base/duration_text.h"
#include "lib/base/gang_address.h"
#include "lib/base/own_address.h"
#include "lib/base/status_macros.h"
#include "lib/channel/channel.h"
#include "prometheus/exposer.h"
#include "worker/agent/agent.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// Together below the 30 s after which service supervisors kill.
constexpr absl::Duration kLeaveGrace = absl::Seconds(20);
constexpr absl::Duration kLeavePatience = absl::Seconds(5);

struct WorkerOptions {
  std::string server = "127.0.0.1:7070";
  std::string data_dir;
  std::string node_id;
  std::string metrics_listen = "127.0.0.1:9465";
  std::string shared_store;
  std::string trainer;
  std::vector<std::string> labels;  // KEY=VALUE
  std::string gang_address;         // HOST[:PORT]; empty: no jobs of several nodes
  int shares = 1;
  uint64_t cache_limit = uint64_t{50} << 30;
  uint64_t keep_limit = uint64_t{50} << 30;
  uint64_t checkpoint_limit = uint64_t{1} << 30;
  uint64_t checkpoint_rate = uint64_t{50} << 20;
  std::string stall_after = "15m";
};

absl::StatusOr<std::map<std::string, std::string>> ParseLabels(const std::vector<std::string>& texts) {
  std::map<std::string, std::string> labels;
  for (const std::string& text : texts) {
    const std::pair<std::string, std::string> label = absl::StrSplit(text, absl::MaxSplits('=', 1));
    if (label.first.empty() || text.find('=') == std::string::npos || text.find(',') != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("--label: '", text, "' is no label; give KEY=VALUE"));
    }
    labels.insert(label);
  }
  return labels;
}

absl::StatusOr<GangAddress> ParseGangAddress(const std::string& text) {
  if (text.empty()) return GangAddress();
  absl::StatusOr<GangAddress> address = ReadGangAddress(text);
  absl::Status status = address.status();
  if (status.ok()) status = CheckOwnAddress(address->host);
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("--gang-address: ", status.message()));
  if (IsLoopback(address->host)) {
    std::fprintf(stderr,
                 "luthier-worker: --gang-address: '%s' is a loopback address on this machine, so that only nodes on it "
                 "can train with this one; give an address that `ip address` shows for the network of the others\n",
                 address->host.c_str());
  }
  return address;
}

absl::StatusOr<std::unique_ptr<prometheus::Exposer>> Expose(const std::string& listen,
                                                            const std::shared_ptr<prometheus::Registry>& registry) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/2);
    exposer->RegisterCollectable(registry);
    return exposer;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("--metrics-listen: cannot listen on ", listen,
                                               "; is another agent running? Give a free port, or port 0 for any"));
  }
}

absl::Status Work(const WorkerOptions& options, const sigset_t& signals) {
  if (access(options.trainer.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("--trainer: ", options.trainer, " is no program; give the path of luthier-trainer"));
  }
  absl::Duration stall_after;
  if (!ReadDuration(options.stall_after, &stall_after) || stall_after <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("--stall-after: '", options.stall_after,
                                                   "' is no duration above 0; give one such as 15m, or inf for never"));
  }
  LUTHIER_ASSIGN_OR_RETURN(const GangAddress gang_address, ParseGangAddress(options.gang_address));
  LUTHIER_RETURN_IF_ERROR(CheckServerAddress(options.server));
  LUTHIER_RETURN_IF_ERROR(CheckTlsFiles());
  LUTHIER_ASSIGN_OR_RETURN(const std::string token, TokenFromEnvironment());
  unsetenv("LUTHIER_TOKEN");  // trainers inherit the environment, and have no use for it
  LUTHIER_ASSIGN_OR_RETURN(const DataFolder folder, DataFolder::Open(options.data_dir));
  LUTHIER_ASSIGN_OR_RETURN(const std::string node_id, folder.NodeId(options.node_id));

  const auto registry = std::make_shared<prometheus::Registry>();
  AgentMetrics metrics(*registry, LUTHIER_VERSION);
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<prometheus::Exposer> exposer,
                           Expose(options.metrics_listen, registry));

  const std::shared_ptr<grpc::Channel> channel = DialServer(options.server, token);
  ServerFiles files(channel);
  InputCache::Options cache_options;
  cache_options.folder = folder.CacheFolder();
  cache_options.shared_store = options.shared_store;
  cache_options.max_bytes = static_cast<int64_t>(options.cache_limit);
  cache_options.on_fetched = [&](int64_t bytes) { metrics.ObserveFetched(bytes); };
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<InputCache> cache, InputCache::Open(cache_options, files));
  const Inventory inventory(Nvml::Load(), options.shares);
  metrics.ObserveInventory(inventory.Read());

  Session session(channel);
  Agent::Options agent_options;
  agent_options.node_id = node_id;
  agent_options.version = LUTHIER_VERSION;
  agent_options.trainer = options.trainer;
  agent_options.shared_store = options.shared_store;
  LUTHIER_ASSIGN_OR_RETURN(agent_options.labels, ParseLabels(options.labels));
  agent_options.gang_address = gang_address;
  agent_options.max_kept_bytes = static_cast<int64_t>(options.keep_limit);
  agent_options.max_checkpoint_bytes = static_cast<int64_t>(options.checkpoint_limit);
  agent_options.checkpoint_bytes_per_second = static_cast<int64_t>(options.checkpoint_rate);
  agent_options.stall_after = stall_after;
  agent_options.wake_session = [&] { session.Wake(); };
  agent_options.heartbeat_now = [&] { session.HeartbeatNow(); };
  Agent agent(std::move(agent_options), folder, *cache, files, metrics, inventory);
  session.Open(agent);
  std::fprintf(stderr, "luthier-worker %s: node %s for %s, data in %s, metrics on port %d, trainer %s\n",
               LUTHIER_VERSION, node_id.c_str(), options.server.c_str(), options.data_dir.c_str(),
               exposer->GetListeningPorts().at(0), options.trainer.c_str());

  int signal = 0;
  sigwait(&signals, &signal);
  std::fprintf(stderr, "luthier-worker: leaving; trainers get %d s for a checkpoint\n",
               static_cast<int>(absl::ToInt64Seconds(kLeaveGrace)));
  agent.Leave(session, kLeaveGrace, kLeavePatience);
  session.Close();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  WorkerOptions options;
  options.data_dir = DefaultDataDir("worker");
  options.trainer = fs::read_symlink("/proc/self/exe").parent_path() / "luthier-trainer";
  CLI::App app("The Luthier agent: trains on this machine what the server orders.", "luthier-worker");
  app.set_version_flag("--version", LUTHIER_VERSION);
  app.add_option("--server", options.server, "Address of luthierd")->envname("LUTHIER_SERVER")->capture_default_str();
  app.add_option("--data-dir", options.data_dir,
                 "Folder for checkpoints, journals and cached inputs; one agent a folder")
      ->envname("LUTHIER_WORKER_DATA_DIR")
      ->capture_default_str();
  app.add_option("--node-id", options.node_id, "Name of this machine; default: kept in the data folder")
      ->envname("LUTHIER_NODE_ID");
  app.add_option("--metrics-listen", options.metrics_listen, "Address of /metrics; port 0: any free one")
      ->envname("LUTHIER_WORKER_METRICS_LISTEN")
      ->capture_default_str();
  app.add_option("--shared-store", options.shared_store, "Folder `artifacts` of the server, if this machine sees it")
      ->envname("LUTHIER_SHARED_STORE");
  app.add_option("--shares", options.shares,
                 "Attempts that a device is given to at a time, each with its part of the memory (and of the CPUs)")
      ->envname("LUTHIER_WORKER_SHARES")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--label", options.labels, "Label for jobs that ask for it (resources.node_selector); may be repeated")
      ->envname("LUTHIER_WORKER_LABELS")
      ->delimiter(',')
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_option(
         "--gang-address", options.gang_address,
         "Address by which other nodes reach this one, for jobs that run on several (resources.nodes); default: "
         "no such jobs. Port: 29400, and one more for each further device. What passes there is neither "
         "encrypted nor authenticated, so it belongs into a trusted network")
      ->envname("LUTHIER_WORKER_GANG_ADDRESS")
      ->type_name("HOST[:PORT]");
  app.add_option("--trainer", options.trainer, "Path of luthier-trainer")
      ->envname("LUTHIER_TRAINER")
      ->capture_default_str();
  app.add_option("--cache-limit", options.cache_limit, "Bytes of inputs to keep, such as 200GB")
      ->envname("LUTHIER_CACHE_LIMIT")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--keep-limit", options.keep_limit, "Bytes of checkpoints to keep for jobs that do not run here")
      ->envname("LUTHIER_KEEP_LIMIT")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--checkpoint-limit", options.checkpoint_limit,
                 "Bytes up to which checkpoints of full models are stored on the server while they train; larger ones "
                 "only when a job has to move, those of adapters always")
      ->envname("LUTHIER_CHECKPOINT_LIMIT")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--checkpoint-rate", options.checkpoint_rate, "Bytes a second at which they are; 0: no limit")
      ->envname("LUTHIER_CHECKPOINT_RATE")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--stall-after", options.stall_after,
                 "How long a trainer may say nothing between two steps before it is ended and its job tried again "
                 "(four times as long while it loads and exports, and ten steps in any case); inf: for ever")
      ->envname("LUTHIER_STALL_AFTER")
      ->capture_default_str();
  app.footer(
      "$LUTHIER_TOKEN, or a file that $LUTHIER_TOKEN_FILE names, holds the token of the server, if it wants one.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // as luthier-trainer; the codes of CLI11 are its own
  }

  // Blocked before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  options.data_dir = fs::absolute(options.data_dir);
  const absl::Status status = Work(options, signals);
  if (status.ok()) return 0;
  std::fprintf(stderr, "luthier-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) {
  try {
    return luthier::Main(argc, argv);
  } catch (const std::exception& error) {  // of std::filesystem, about a folder that our user must not see
    std::fprintf(stderr, "luthier-worker: %s\n", error.what());
    return 1;
  }
}
