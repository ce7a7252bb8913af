#include "client/cli/config.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/yaml.h"
#include "client/lib/local_disk.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/folder_lock.h"
#include "lib/base/did_you_mean.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"
#include "lib/plan/block_reader.h"
#include "lib/text/json_file.h"

namespace luthier {
namespace {

using nlohmann::json;

// The files of a server, by their fields.
std::vector<std::pair<const char*, std::string ServerConfig::*>> FileFields() {
  return {{"token_file", &ServerConfig::token_file},
          {"tls_ca", &ServerConfig::tls_ca},
          {"tls_cert", &ServerConfig::tls_cert},
          {"tls_key", &ServerConfig::tls_key}};
}

std::map<std::string, ServerConfig> ParseContexts(const json* contexts, std::vector<std::string>& violations) {
  std::map<std::string, ServerConfig> servers;
  if (contexts == nullptr) return servers;
  if (!contexts->is_object()) {
    violations.push_back("contexts: is no block; write it as `contexts: {NAME: {server: HOST:PORT}}`");
    return servers;
  }
  for (const auto& [name, context] : contexts->items()) {
    const std::string path = absl::StrCat("contexts.", name, ".");
    const json block = context.is_object() ? context : json::object();
    BlockReader reader(block, path, violations);
    ServerConfig& server = servers[name];
    reader.Text("server", server.address);
    if (server.address.empty()) reader.Violation("server", "is missing; give HOST:PORT");
    for (const auto& [field, file] : FileFields()) reader.Text(field, server.*file);
    reader.Finish();
  }
  return servers;
}

absl::StatusOr<Config> Parse(const std::string& text, const std::string& path, bool of_project) {
  LUTHIER_ASSIGN_OR_RETURN(const YamlDocument document, ParseYaml(text, path));
  if (document.value.is_null()) return Config();
  if (!document.value.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is no block of fields"));
  Config config;
  std::vector<std::string> violations;
  BlockReader reader(document.value, "", violations);
  reader.Text("context", config.context);
  reader.Choice("output", config.output, {"table", "wide", "json", "yaml", "name"});
  if (of_project) {
    for (const char* field : {"contexts", "server"}) {
      if (!document.value.contains(field)) continue;
      reader.Ignore(field);
      reader.Violation(field,
                       "servers stand in your own config file, so that no project chooses where your token is sent; "
                       "make one with `luthier context set`");
    }
  } else {
    config.servers = ParseContexts(reader.Raw("contexts"), violations);
  }
  reader.Finish();
  if (!violations.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", absl::StrJoin(violations, absl::StrCat("\n", path, ": "))));
  }
  return config;
}

}  // namespace

absl::StatusOr<Config> ParseConfig(const std::string& text, const std::string& path) {
  return Parse(text, path, /*of_project=*/false);
}

absl::StatusOr<Config> ReadProjectConfig(const std::string& folder) {
  for (std::filesystem::path at = folder; !at.empty(); at = at.parent_path()) {
    const std::string path = at / ".luthier.yaml";
    const absl::StatusOr<std::string> text = ReadTextFile(path, kMostYamlBytes + 1);
    if (text.ok()) return Parse(*text, path, /*of_project=*/true);
    if (!absl::IsNotFound(text.status())) return absl::InvalidArgumentError(text.status().message());
    if (at == at.parent_path()) break;
  }
  return Config();
}

absl::StatusOr<Config> ReadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadTextFile(path, kMostYamlBytes + 1);
  if (absl::IsNotFound(text.status())) return Config();
  if (!text.ok()) return absl::InvalidArgumentError(text.status().message());
  absl::StatusOr<Config> config = ParseConfig(*text, path);
  if (!config.ok()) return config;
  // Commands are given in other folders than that of the file.
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  for (auto& named : config->servers) {
    for (const auto& [field, file] : FileFields()) {
      std::string& given = named.second.*file;
      if (!given.empty()) given = (folder / given).lexically_normal().string();
    }
  }
  return config;
}

absl::Status WriteConfig(const Config& config, const std::string& path) {
  json out = json::object();
  if (!config.context.empty()) out["context"] = config.context;
  if (!config.output.empty()) out["output"] = config.output;
  for (const auto& [name, server] : config.servers) {
    json& context = out["contexts"][name];
    context["server"] = server.address;
    for (const auto& [field, file] : FileFields()) {
      if (!(server.*file).empty()) context[field] = server.*file;
    }
  }
  LUTHIER_RETURN_IF_ERROR(OnOurDisk(CreateFolders(std::filesystem::absolute(path).parent_path())));
  return OnOurDisk(WriteFileDurably(path, ToYaml(out)));
}

absl::Status ChangeConfig(const std::string& path, absl::FunctionRef<absl::Status(Config&)> change) {
  const std::string folder = std::filesystem::absolute(path).parent_path();
  LUTHIER_RETURN_IF_ERROR(OnOurDisk(CreateFolders(folder)));
  const absl::StatusOr<FolderLock> lock = FolderLock::Take(folder);
  if (!lock.ok()) return OnOurDisk(lock.status());
  LUTHIER_ASSIGN_OR_RETURN(Config config, ReadConfig(path));
  LUTHIER_RETURN_IF_ERROR(change(config));
  return WriteConfig(config, path);
}

std::string UsualConfigPath() {
  std::string folder = Environment("XDG_CONFIG_HOME");
  if (folder.empty()) folder = absl::StrCat(Environment("HOME"), "/.config");
  return absl::StrCat(folder, "/luthier/config.yaml");
}

std::string DefaultConfigPath() {
  std::string path = Environment("LUTHIER_CONFIG");
  return path.empty() ? UsualConfigPath() : path;
}

absl::StatusOr<ServerConfig> ServerOf(const std::string& context, const char* given_by, const Config& config) {
  if (const auto found = config.servers.find(context); found != config.servers.end()) return found->second;
  std::vector<std::string> known;
  for (const auto& [name, server] : config.servers) known.push_back(name);
  const std::string near = DidYouMean(context, known);
  return absl::InvalidArgumentError(absl::StrCat(given_by, ": there is no context '", context, "'; ",
                                                 known.empty()
                                                     ? "make it with `luthier context set NAME --server HOST:PORT`"
                                                 : near.empty() ? absl::StrCat("known: ", absl::StrJoin(known, ", "))
                                                                : absl::StrCat("did you mean '", near, "'?")));
}

absl::StatusOr<ServerConfig> ChooseServer(const ServerSources& sources, const Config& config) {
  const auto of_context = [&](const std::string& context, const char* given_by) {
    return ServerOf(context, given_by, config);
  };
  if (!sources.server_flag.empty()) return ServerConfig{.address = sources.server_flag};
  if (!sources.context_flag.empty()) return of_context(sources.context_flag, "--context");
  if (!sources.server_environment.empty()) return ServerConfig{.address = sources.server_environment};
  if (!sources.context_environment.empty()) return of_context(sources.context_environment, "LUTHIER_CONTEXT");
  if (!sources.context_of_project.empty()) return of_context(sources.context_of_project, "context in .luthier.yaml");
  if (!config.context.empty()) return of_context(config.context, "context in the config file");
  return ServerConfig{.address = kDefaultServer};
}

}  // namespace luthier
