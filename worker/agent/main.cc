// luthier-worker: wiring, and a clean end.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/artifact/private_folder.h"
#include "lib/base/duration_text.h"
#include "lib/base/gang_address.h"
#include "lib/base/openssl_at_exit.h"
#include "lib/base/own_address.h"
#include "lib/base/status_macros.h"
#include "lib/channel/channel.h"
#include "prometheus/exposer.h"
#include "worker/agent/agent.h"
#include "worker/agent/options.h"

namespace luthier {
namespace {

// Together below the 30 s after which service supervisors kill.
constexpr absl::Duration kLeaveGrace = absl::Seconds(20);
constexpr absl::Duration kLeavePatience = absl::Seconds(5);

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

absl::StatusOr<absl::Duration> ParseStallAfter(const std::string& text) {
  absl::Duration stall_after;
  if (ReadDuration(text, &stall_after) && stall_after > absl::ZeroDuration()) return stall_after;
  return absl::InvalidArgumentError(
      absl::StrCat("--stall-after: '", text, "' is no duration above 0; give one such as 15m, or inf for never"));
}

InputCache::Options CacheOptionsOf(const WorkerOptions& options, const DataFolder& folder, AgentMetrics& metrics) {
  InputCache::Options cache;
  cache.folder = folder.CacheFolder();
  cache.shared_store = options.shared_store;
  cache.max_bytes = static_cast<int64_t>(options.cache_limit);
  cache.on_fetched = [&](int64_t bytes) { metrics.ObserveFetched(bytes); };
  return cache;
}

// What the command line alone says of the agent.
absl::StatusOr<Agent::Options> AgentOptionsOf(const WorkerOptions& options) {
  Agent::Options agent;
  agent.version = LUTHIER_VERSION;
  agent.trainer = options.trainer;
  agent.shared_store = options.shared_store;
  agent.max_kept_bytes = static_cast<int64_t>(options.keep_limit);
  agent.max_checkpoint_bytes = static_cast<int64_t>(options.checkpoint_limit);
  agent.checkpoint_bytes_per_second = static_cast<int64_t>(options.checkpoint_rate);
  LUTHIER_ASSIGN_OR_RETURN(agent.stall_after, ParseStallAfter(options.stall_after));
  LUTHIER_ASSIGN_OR_RETURN(agent.gang_address, ParseGangAddress(options.gang_address));
  LUTHIER_ASSIGN_OR_RETURN(agent.labels, ParseLabels(options.labels));
  return agent;
}

absl::Status Work(const WorkerOptions& options, const sigset_t& signals) {
  if (access(options.trainer.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("--trainer: ", options.trainer, " is no program; give the path of luthier-trainer"));
  }
  LUTHIER_ASSIGN_OR_RETURN(Agent::Options agent_options, AgentOptionsOf(options));
  LUTHIER_RETURN_IF_ERROR(CheckServerAddress(options.server));
  LUTHIER_RETURN_IF_ERROR(CheckTlsFiles());
  LUTHIER_ASSIGN_OR_RETURN(const std::string token, TokenFromEnvironment());
  unsetenv("LUTHIER_TOKEN");  // trainers inherit the environment, and have no use for it
  LUTHIER_ASSIGN_OR_RETURN(const DataFolder folder, DataFolder::Open(options.data_dir));
  LUTHIER_ASSIGN_OR_RETURN(agent_options.node_id, folder.NodeId(options.node_id));
  LUTHIER_ASSIGN_OR_RETURN(agent_options.instance, folder.Instance());
  const std::string warning = WarningIfOpen(folder.root());
  if (!warning.empty()) std::fprintf(stderr, "luthier-worker: %s\n", warning.c_str());

  const auto registry = std::make_shared<prometheus::Registry>();
  AgentMetrics metrics(*registry, LUTHIER_VERSION);
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<prometheus::Exposer> exposer,
                           Expose(options.metrics_listen, registry));

  const std::shared_ptr<grpc::Channel> channel = DialServer(options.server, token);
  ServerFiles files(channel);
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<InputCache> cache,
                           InputCache::Open(CacheOptionsOf(options, folder, metrics), files));
  const Inventory inventory(Nvml::Load(), options.shares);
  metrics.ObserveInventory(inventory.Read());

  Session session(channel);
  const std::string node_id = agent_options.node_id;
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
  const std::variant<WorkerOptions, int> read = ReadOptions(argc, argv);
  if (const int* exit_code = std::get_if<int>(&read)) return *exit_code;
  const auto& options = std::get<WorkerOptions>(read);

  // Blocked before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const absl::Status status = Work(options, signals);
  if (status.ok()) return 0;
  std::fprintf(stderr, "luthier-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) {
  luthier::LeaveOpenSslAtExit();
  try {
    return luthier::Main(argc, argv);
  } catch (const std::exception& error) {  // of std::filesystem, about a folder that our user must not see
    std::fprintf(stderr, "luthier-worker: %s\n", error.what());
    return 1;
  }
}
