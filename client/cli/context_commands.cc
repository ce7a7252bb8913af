// `context`: names for several servers, in the config file.
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/table.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"
#include "lib/channel/channel.h"

namespace luthier {
namespace {

absl::Status List(CommandContext& context) {
  const Config& config = context.config();
  if (context.ForPrograms()) {
    nlohmann::json out = {{"context", config.context}, {"contexts", nlohmann::json::object()}};
    for (const auto& [name, server] : config.servers) out["contexts"][name]["server"] = server.address;
    context.PrintForPrograms(out);
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    for (const auto& [name, server] : config.servers) context.out() << name << "\n";
    return absl::OkStatus();
  }
  if (config.servers.empty()) {
    context.Say("no contexts; make one with: luthier context set NAME --server HOST:PORT");
    return absl::OkStatus();
  }
  Table table({{"IN USE"}, {"NAME"}, {"SERVER", false, true}});
  for (const auto& [name, server] : config.servers)
    table.AddRow({name == config.context ? "*" : "", name, server.address});
  context.out() << table.Render(context.out_terminal());
  return absl::OkStatus();
}

// A variable beats what the file says, and nobody would see that in a list of contexts.
void SayWhatGoesBefore(CommandContext& context) {
  for (const char* variable : {"LUTHIER_SERVER", "LUTHIER_CONTEXT"}) {
    const std::string value = Environment(variable);
    if (value.empty()) continue;
    context.Say(
        absl::StrCat("warning: ", variable, " is set, so commands go to ", value, "; unset it to use contexts"));
    return;
  }
}

absl::Status Use(CommandContext& context, const std::string& name) {
  ServerConfig server;
  LUTHIER_RETURN_IF_ERROR(ChangeConfig(context.config_path(), [&](Config& config) -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(server, ServerOf(name, "NAME", config));
    config.context = name;
    return absl::OkStatus();
  }));
  context.Say(absl::StrCat("commands go to ", name, " at ", server.address));
  SayWhatGoesBefore(context);
  return absl::OkStatus();
}

// By its absolute path: commands are given in other folders.
void MakeAbsolute(std::string& file) {
  if (!file.empty()) file = std::filesystem::absolute(file).lexically_normal().string();
}

absl::Status Set(CommandContext& context, const std::string& name, ServerConfig server) {
  server.address = context.server_flag();
  if (server.address.empty()) return absl::InvalidArgumentError("--server: is missing; give HOST:PORT");
  LUTHIER_RETURN_IF_ERROR(CheckServerAddress(server.address));
  for (std::string* file : {&server.token_file, &server.tls_ca, &server.tls_cert, &server.tls_key}) MakeAbsolute(*file);
  const TlsFiles tls = {server.tls_ca, server.tls_cert, server.tls_key};
  // Without any they would be the environment's, which this context does not keep.
  if (!tls.empty()) LUTHIER_RETURN_IF_ERROR(CheckTlsFiles(tls));
  if (!server.token_file.empty()) LUTHIER_RETURN_IF_ERROR(TokenInFile("--token-file", server.token_file).status());
  bool used = false;
  LUTHIER_RETURN_IF_ERROR(ChangeConfig(context.config_path(), [&](Config& config) {
    config.servers[name] = server;
    if (config.context.empty()) config.context = name;
    used = config.context == name;
    return absl::OkStatus();
  }));
  context.Say(absl::StrCat(name, " is ", server.address, used ? ", and in use" : ""));
  if (used) SayWhatGoesBefore(context);
  return absl::OkStatus();
}

absl::Status Delete(CommandContext& context, const std::string& name) {
  bool used = false;
  LUTHIER_RETURN_IF_ERROR(ChangeConfig(context.config_path(), [&](Config& config) -> absl::Status {
    LUTHIER_RETURN_IF_ERROR(ServerOf(name, "NAME", config).status());
    config.servers.erase(name);
    used = config.context == name;
    if (used) config.context.clear();
    return absl::OkStatus();
  }));
  context.Say(absl::StrCat(name, " is forgotten", used ? "; no context is in use now" : ""));
  return absl::OkStatus();
}

}  // namespace

void AddContextCommands(CLI::App& app, CommandContext& context) {
  CLI::App& noun = context.AddNoun(app, "context", "Name several servers and choose one");
  context.AddCommand(noun, "list", "List the servers of the config file", "  luthier context list\n",
                     [&context] { return List(context); });

  auto used = std::make_shared<std::string>();
  CLI::App& use = context.AddCommand(noun, "use", "Choose the server for the commands to come",
                                     "  luthier context use lab\n", [&context, used] { return Use(context, *used); });
  use.add_option("NAME", *used, "Name of the context")->required();
  context.CompleteWith(use, ContextNames);

  auto name = std::make_shared<std::string>();
  auto files = std::make_shared<ServerConfig>();
  CLI::App& set = context.AddCommand(
      noun, "set", "Name a server, and the files of what it wants of its callers",
      "  luthier context set lab --server gpu1:7070\n"
      "  luthier context set lab --server gpu1:7070 --token-file ~/lab.token --tls-ca ~/lab/ca.pem\n",
      [&context, name, files] { return Set(context, *name, *files); });
  set.add_option("NAME", *name, "Name of the context")->required();
  const auto add = [&](const char* flag, std::string& file, const char* help) {
    set.add_option(flag, file, help)->type_name("FILE");
  };
  add("--token-file", files->token_file, "File of the token for this server, instead of the environment's");
  add("--tls-ca", files->tls_ca, "File of the authority that signed its certificate, instead of the environment's");
  add("--tls-cert", files->tls_cert, "File of a certificate of your own, if it wants one");
  add("--tls-key", files->tls_key, "File of its key");

  auto deleted = std::make_shared<std::string>();
  CLI::App& remove =
      context.AddCommand(noun, "delete", "Forget a server; nothing changes there", "  luthier context delete lab\n",
                         [&context, deleted] { return Delete(context, *deleted); });
  remove.add_option("NAME", *deleted, "Name of the context")->required();
  context.CompleteWith(remove, ContextNames);
}

}  // namespace luthier
