#include "server/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/data_dir.h"
#include "lib/base/did_you_mean.h"
#include "lib/base/duration_text.h"
#include "lib/base/status_macros.h"
#include "yaml-cpp/yaml.h"

namespace luthier {
namespace {

constexpr int kWrongUsage = 2;  // as luthier-trainer; the codes of CLI11 are its own

// The options that a file may hold, as text: the same names as the flags.
std::vector<CLI::Option*> FileOptions(CLI::App& app) {
  std::vector<CLI::Option*> options;
  for (const char* name :
       {"--listen", "--metrics-listen", "--data-dir", "--with-local-worker", "--worker-metrics-listen", "--keep-unused",
        "--keep-versions", "--preempt-after", "--retention", "--trust-network", "--allow-network-disk", "--tls-cert",
        "--tls-key", "--tls-client-ca", "--artifact-store", "--artifact-cache-limit", "--max-dataset-size",
        "--tenant-watchers", "--idle-timeout"}) {
    options.push_back(app.get_option(name));
  }
  return options;
}

// Values of the file for options that neither a flag nor the environment gave.
absl::Status ReadFile(const std::string& path, CLI::App& app) {
  const std::vector<CLI::Option*> known = FileOptions(app);
  try {
    for (const auto& entry : YAML::LoadFile(path)) {
      const auto key = entry.first.as<std::string>();
      const auto option =
          std::find_if(known.begin(), known.end(), [&](CLI::Option* o) { return o->get_name() == "--" + key; });
      if (option == known.end()) {
        const auto names =
            absl::StrJoin(known, ", ", [](std::string* out, CLI::Option* o) { out->append(o->get_name().substr(2)); });
        return absl::InvalidArgumentError(absl::StrCat(path, ": '", key, "' is unknown; known are ", names));
      }
      if ((*option)->count() > 0) continue;
      (*option)->add_result(entry.second.as<std::string>());
      (*option)->run_callback();
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("--config: ", path, " cannot be read: ", error.what()));
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat("--config: ", path, ": ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status ParseDurationOption(const std::string& option, const std::string& text, absl::Duration& duration) {
  if (ReadDuration(text, &duration) && duration >= absl::ZeroDuration()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(option, ": '", text, "' is no duration; give one such as 30m, 24h or 30d, or inf for ever"));
}

// As the command line has them.
struct DurationTexts {
  std::string keep_unused = "1h";
  std::string preempt_after = "10m";
  std::string retention = "inf";
  std::string idle_timeout = "5m";
};

void AddFlags(CLI::App& app, ServerOptions& options, DurationTexts& durations) {
  const auto add = [&](const std::string& name, std::string& value, const std::string& help,
                       const std::string& environment) {
    app.add_option(name, value, help)->envname(environment)->capture_default_str();
  };
  add("--listen", options.listen, "Address of the API; port 0: any free one", "LUTHIER_LISTEN");
  add("--metrics-listen", options.metrics_listen, "Address of /metrics; port 0: any free one",
      "LUTHIER_METRICS_LISTEN");
  add("--data-dir", options.data_dir, "Folder of everything that must not be lost", "LUTHIER_DATA_DIR");
  app.add_flag("--with-local-worker", options.with_local_worker, "Also start an agent on this machine")
      ->envname("LUTHIER_WITH_LOCAL_WORKER");
  add("--tls-cert", options.tls_cert, "Certificate of this server (PEM): connections are encrypted",
      "LUTHIER_TLS_SERVER_CERT");
  add("--tls-key", options.tls_key, "Its key", "LUTHIER_TLS_SERVER_KEY");
  add("--tls-client-ca", options.tls_client_ca, "Callers need a certificate that this authority signed",
      "LUTHIER_TLS_CLIENT_CA");
  app.add_flag("--trust-network", options.trust_network,
               "As long as there are no tokens, let other machines do everything too")
      ->envname("LUTHIER_TRUST_NETWORK");
  app.add_flag("--allow-network-disk", options.allow_network_disk,
               "Take a --data-dir on what looks like a network file system")
      ->envname("LUTHIER_ALLOW_NETWORK_DISK");
  add("--worker-metrics-listen", options.worker_metrics_listen,
      "Address of that agent's /metrics; port 0: any free one", "LUTHIER_WORKER_METRICS_LISTEN");
  add("--artifact-store", options.artifact_store,
      "Bucket for datasets, models and artifacts, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX, "
      "with "
      "credentials of the environment; default: in the data folder",
      "LUTHIER_ARTIFACT_STORE");
  app.add_option("--artifact-cache-limit", options.artifact_cache_limit,
                 "Bytes of a bucket's datasets to keep in the data folder, such as 200GB")
      ->envname("LUTHIER_ARTIFACT_CACHE_LIMIT")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--max-dataset-size", options.max_dataset_size,
                 "Bytes that the files of a dataset may have in all, such as 20GB")
      ->envname("LUTHIER_MAX_DATASET_SIZE")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--tenant-watchers", options.tenant_watchers,
                 "Watches of jobs, of their logs and of their metrics that one tenant may have open, of 20000 in all")
      ->envname("LUTHIER_TENANT_WATCHERS")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  add("--idle-timeout", durations.idle_timeout, "How long a connection on which nothing is called stays open",
      "LUTHIER_IDLE_TIMEOUT");
  add("--keep-unused", durations.keep_unused, "How long stored files that nothing refers to are kept",
      "LUTHIER_KEEP_UNUSED");
  add("--retention", durations.retention,
      "How long logs and progress of jobs that are over are kept, unless a job says otherwise", "LUTHIER_RETENTION");
  app.add_option("--keep-versions", options.keep_versions,
                 "Newest versions of a model that are kept, besides those that have an alias; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->envname("LUTHIER_KEEP_VERSIONS")
      ->capture_default_str();
  add("--preempt-after", durations.preempt_after,
      "How long an attempt runs before it may be stopped for a more urgent job, or for one that wants back what its "
      "tenant lent",
      "LUTHIER_PREEMPT_AFTER");
}

absl::Status ReadDurations(const DurationTexts& durations, ServerOptions& options) {
  LUTHIER_RETURN_IF_ERROR(ParseDurationOption("--keep-unused", durations.keep_unused, options.keep_unused));
  LUTHIER_RETURN_IF_ERROR(ParseDurationOption("--retention", durations.retention, options.retention));
  LUTHIER_RETURN_IF_ERROR(ParseDurationOption("--preempt-after", durations.preempt_after, options.preempt_after));
  LUTHIER_RETURN_IF_ERROR(ParseDurationOption("--idle-timeout", durations.idle_timeout, options.idle_timeout));
  if (options.idle_timeout < absl::Seconds(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--idle-timeout: '", durations.idle_timeout,
                     "' leaves no time for a call; give one such as 5m, or inf for ever"));
  }
  return absl::OkStatus();
}

absl::Status CheckAddressAndTls(const ServerOptions& options) {
  if (!absl::StrContains(options.listen, ':')) {
    return absl::InvalidArgumentError(absl::StrCat("--listen: '", options.listen,
                                                   "' is no HOST:PORT; give one such as 127.0.0.1:7070, or "
                                                   "0.0.0.0:7070 for every address of this machine"));
  }
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key belong together; give both");
  }
  if (options.tls_cert.empty() && !options.tls_client_ca.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca: is given without --tls-cert and --tls-key; give these, too");
  }
  const std::map<std::string, std::string> files = {
      {"--tls-cert", options.tls_cert}, {"--tls-key", options.tls_key}, {"--tls-client-ca", options.tls_client_ca}};
  for (const auto& [flag, path] : files) {
    if (!path.empty() && !std::ifstream(path))
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": ", path, " cannot be read; give a file that luthierd's user may read"));
  }
  return absl::OkStatus();
}

// About the first word that means nothing, with what was probably meant; CLI11 lists all, the last one first.
std::string Unexpected(const CLI::App& app) {
  const std::string word = app.remaining(/*recurse=*/true).front();
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) known.push_back(option->get_name());
  for (const CLI::App* action : app.get_subcommands([](const CLI::App*) { return true; }))
    known.push_back(action->get_name());
  const std::string near = DidYouMean(word.substr(0, word.find('=')), known);
  return absl::StrCat("'", word, "' is unknown", near.empty() ? "" : absl::StrCat("; did you mean '", near, "'?"),
                      "\nsee: luthierd --help\n");
}

}  // namespace

absl::StatusOr<std::variant<ServerOptions, int>> ReadOptions(int argc, char** argv) {
  ServerOptions options;
  options.data_dir = DefaultDataDir("server");
  DurationTexts durations;
  std::string config;
  CLI::App app("The Luthier server: takes fine-tuning jobs and gives them to agents.", "luthierd");
  app.set_version_flag("--version", LUTHIER_VERSION);
  AddFlags(app, options, durations);
  CLI::App& check = *app.add_subcommand(
      "check", "Read every byte of the data folder, which no server may use, or of a backup, and end");
  check.add_flag("--json", options.json, "Print what was found as JSON");
  CLI::App& restore =
      *app.add_subcommand("restore", "Make the data folder what a backup of `luthier admin backup` shows, and end");
  restore.add_option("--from", options.backup, "Folder of the backup")->required();
  CLI::App& admin_token = *app.add_subcommand(
      "admin-token",
      "Give an admin's token another secret and print it, where the old one was lost, and end; no server "
      "may use the data folder");
  admin_token.add_option("TOKEN", options.token, "Name of the token; it is made if there is none")
      ->capture_default_str();
  for (CLI::App* action : {&check, &restore, &admin_token}) {
    action->fallthrough();
    action->footer(
        "Where the data are is said as to luthierd itself: --data-dir, --config and the flags of the artifact "
        "store (luthierd --help).");
  }
  app.require_subcommand(0, 1);
  app.add_option("--config", config, "YAML file with the same names; flags beat environment beat file")
      ->envname("LUTHIERD_CONFIG");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    std::fprintf(stderr, "luthierd: %s", Unexpected(app).c_str());
    return kWrongUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kWrongUsage;
  }
  if (!config.empty()) LUTHIER_RETURN_IF_ERROR(ReadFile(config, app));
  LUTHIER_RETURN_IF_ERROR(ReadDurations(durations, options));
  LUTHIER_RETURN_IF_ERROR(CheckAddressAndTls(options));
  options.data_dir = std::filesystem::absolute(options.data_dir);
  if (check.parsed()) options.action = ServerAction::kCheck;
  if (admin_token.parsed()) options.action = ServerAction::kAdminToken;
  if (restore.parsed()) {
    options.action = ServerAction::kRestore;
    options.backup = std::filesystem::absolute(options.backup);
  }
  return options;
}

}  // namespace luthier
