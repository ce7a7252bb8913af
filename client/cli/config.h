// Which server to talk to, and how to print: flags > environment > the project's file > one's own config file.
#pragma once

#include <map>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace luthier {

inline constexpr char kDefaultServer[] = "127.0.0.1:7070";

// Where a server is, and the files of what it wants of its callers, which hold the secrets. Without a token_file the
// environment gives the token, and without any of the tls files all three (lib/channel).
struct ServerConfig {
  std::string address;
  std::string token_file;
  std::string tls_ca, tls_cert, tls_key;
  bool operator==(const ServerConfig&) const = default;
};

// ~/.config/luthier/config.yaml:
//     context: lab
//     contexts: {lab: {server: "gpu1:7070", token_file: /home/me/lab.token}, local: {server: "127.0.0.1:7070"}}
//     output: table
struct Config {
  std::string context;                          // the one in use; empty: none
  std::map<std::string, ServerConfig> servers;  // of each context
  std::string output;                           // default of -o; empty: table
};

// Errors: INVALID_ARGUMENT naming file, line and field.
absl::StatusOr<Config> ParseConfig(const std::string& text, const std::string& path);

// A file that does not exist is an empty config.
absl::StatusOr<Config> ReadConfig(const std::string& path);

// What the nearest `.luthier.yaml` in `folder` (absolute) or above it says: `context` and `output`, as in a config
// file. Errors: INVALID_ARGUMENT, also for contexts: a project that somebody else wrote must not say where tokens are
// sent.
absl::StatusOr<Config> ReadProjectConfig(const std::string& folder);

// Writes the file durably, and its folder if needed.
absl::Status WriteConfig(const Config& config, const std::string& path);

// Reads, changes and writes the file; commands that do so at the same time wait for each other. Errors: those of
// `change`, which then changes nothing, and as above.
absl::Status ChangeConfig(const std::string& path, absl::FunctionRef<absl::Status(Config&)> change);

// $XDG_CONFIG_HOME/luthier/config.yaml, else ~/.config/luthier/config.yaml: it need not be there.
std::string UsualConfigPath();
// $LUTHIER_CONFIG, else the usual one.
std::string DefaultConfigPath();

// What names a server, strongest first; empty where not given.
struct ServerSources {
  std::string server_flag;          // --server
  std::string context_flag;         // --context
  std::string server_environment;   // LUTHIER_SERVER
  std::string context_environment;  // LUTHIER_CONTEXT
  std::string context_of_project;   // .luthier.yaml
};

// Of a server that a flag or the environment names, nothing is known but its address. Errors: INVALID_ARGUMENT for a
// context that the config does not have, listing those it has. `given_by`: what named the context.
absl::StatusOr<ServerConfig> ServerOf(const std::string& context, const char* given_by, const Config& config);
absl::StatusOr<ServerConfig> ChooseServer(const ServerSources& sources, const Config& config);

}  // namespace luthier
