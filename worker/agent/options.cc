#include "worker/agent/options.h"

#include <CLI/CLI.hpp>
#include <filesystem>

#include "lib/base/data_dir.h"
#include "lib/wire/agent_protocol.h"

namespace luthier {

namespace fs = std::filesystem;

std::variant<WorkerOptions, int> ReadOptions(int argc, char** argv) {
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
      ->check(CLI::Range(1, kMostShares))
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
  options.data_dir = fs::absolute(options.data_dir);
  return options;
}

}  // namespace luthier
