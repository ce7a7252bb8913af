#include "client/cli/command.h"

#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/text.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"
#include "lib/channel/channel.h"

namespace luthier {

CommandContext::CommandContext(std::ostream& out, const Terminal& out_terminal, std::ostream& err,
                               const Terminal& err_terminal, Interrupts& interrupts)
    : out_(out), out_terminal_(out_terminal), err_(err), err_terminal_(err_terminal), interrupts_(interrupts) {
  flags_.config_path = DefaultConfigPath();
}

void CommandContext::AddGlobalFlags(CLI::App& command) {
  command.add_option("-o,--output", flags_.output, absl::StrCat("Print as ", absl::StrJoin(OutputFormatNames(), ", ")))
      ->type_name("FORMAT")
      ->group(kGlobalGroup);
  command
      .add_option("--server", flags_.server,
                  absl::StrCat("Address of luthierd; default ", kDefaultServer, ", or $LUTHIER_SERVER"))
      ->type_name("HOST:PORT")
      ->group(kGlobalGroup);
  command.add_option("--context", flags_.context, "A server by its name in the config file (luthier context)")
      ->type_name("NAME")
      ->group(kGlobalGroup);
  command
      .add_option("--config", flags_.config_path,
                  "Config file; default ~/.config/luthier/config.yaml, or $LUTHIER_CONFIG")
      ->type_name("FILE")
      ->group(kGlobalGroup);
  command.set_help_flag("-h,--help", "Show this help")->group(kGlobalGroup);
}

CLI::App& CommandContext::AddCommand(CLI::App& parent, const std::string& name, const std::string& help,
                                     const std::string& examples, std::function<absl::Status()> action) {
  CLI::App& command = *parent.add_subcommand(name, help);
  if (!examples.empty()) command.footer("Examples:\n" + examples);
  command.callback([this, action = std::move(action)] { action_ = action; });
  return command;
}

CLI::App& CommandContext::AddNoun(CLI::App& parent, const std::string& name, const std::string& help) {
  CLI::App& noun = *parent.add_subcommand(name, help);
  noun.require_subcommand(0, 1);
  return noun;
}

std::vector<std::string> CommandContext::CandidatesOf(const CLI::App& command) {
  const auto found = candidates_.find(&command);
  return found == candidates_.end() ? std::vector<std::string>() : found->second(*this);
}

void CommandContext::TakeServerFlags(const std::vector<std::string>& words) {
  const std::map<std::string, std::string*> flags = {
      {"--server", &flags_.server}, {"--context", &flags_.context}, {"--config", &flags_.config_path}};
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    const std::pair<std::string, std::string> word = absl::StrSplit(words[i], absl::MaxSplits('=', 1));
    const auto flag = flags.find(word.first);
    if (flag == flags.end()) continue;
    if (absl::StrContains(words[i], '=')) {
      *flag->second = word.second;
    } else if (i + 2 < words.size()) {
      *flag->second = words[i + 1];
    }
  }
}

absl::Status CommandContext::Load() {
  LUTHIER_ASSIGN_OR_RETURN(config_, ReadConfig(flags_.config_path));
  std::error_code error;
  const std::string folder = std::filesystem::current_path(error);  // empty if it was removed
  LUTHIER_ASSIGN_OR_RETURN(project_, ReadProjectConfig(folder));
  const std::string output = !flags_.output.empty()     ? flags_.output
                             : !project_.output.empty() ? project_.output
                             : !config_.output.empty()  ? config_.output
                                                        : "table";
  LUTHIER_ASSIGN_OR_RETURN(format_, ParseOutputFormat(output));
  return absl::OkStatus();
}

absl::Status CommandContext::CheckConfigFile() const {
  std::error_code error;
  if (flags_.config_path == UsualConfigPath() || std::filesystem::exists(flags_.config_path, error))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--config (or LUTHIER_CONFIG): ", flags_.config_path,
                   " does not exist; name another, or make it with `luthier context set NAME --server HOST:PORT`"));
}

absl::StatusOr<Client*> CommandContext::client() {
  if (client_ == nullptr) {
    LUTHIER_RETURN_IF_ERROR(CheckConfigFile());
    Client::Options options;
    LUTHIER_ASSIGN_OR_RETURN(const ServerConfig server,
                             ChooseServer({.server_flag = flags_.server,
                                           .context_flag = flags_.context,
                                           .server_environment = Environment("LUTHIER_SERVER"),
                                           .context_environment = Environment("LUTHIER_CONTEXT"),
                                           .context_of_project = project_.context},
                                          config_));
    options.server = server.address;
    options.tls = {server.tls_ca, server.tls_cert, server.tls_key};
    LUTHIER_RETURN_IF_ERROR(CheckServerAddress(options.server));
    LUTHIER_RETURN_IF_ERROR(CheckTlsFiles(options.tls));
    // A server's own: the token of the environment is that of another one.
    LUTHIER_ASSIGN_OR_RETURN(options.token, server.token_file.empty() ? TokenFromEnvironment()
                                                                      : TokenInFile("token_file", server.token_file));
    client_ = std::make_unique<Client>(std::move(options));
  }
  return client_.get();
}

void CommandContext::Say(const std::string& message) { err_ << message << std::endl; }

void CommandContext::SayWarnings(const google::protobuf::RepeatedPtrField<std::string>& warnings) {
  for (const std::string& warning : warnings) Say(absl::StrCat("warning: ", OneLine(warning)));
}

void CommandContext::SayThatItWaits(const absl::Status& why) { Say(absl::StrCat(why.message(), "; waiting for it")); }

void CommandContext::PrintOneForPrograms(const nlohmann::json& value) {
  if (format_ == OutputFormat::kYaml) {
    out_ << "---\n" << FormatJson(value, format_) << std::flush;
  } else {
    out_ << value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
  }
}

absl::Status CommandContext::Confirm(const std::string& what) {
  if (yes_ || answers_ == nullptr || !err_terminal_.interactive) return absl::OkStatus();
  err_ << what << "? [y/N] " << std::flush;
  std::string answer;
  std::getline(*answers_, answer);
  answer = absl::AsciiStrToLower(absl::StripAsciiWhitespace(answer));
  if (answer == "y" || answer == "yes") return absl::OkStatus();
  return absl::CancelledError("nothing was changed; answer y, or give --yes");
}

void CommandContext::AddYesFlag(CLI::App& command) { command.add_flag("-y,--yes", yes_, "Do not ask before"); }

TransferProgress CommandContext::ShowTransfer(const std::string& what) {
  if (!err_terminal_.interactive) return {};
  return [this, what](int64_t done, int64_t total) {
    const int64_t percent = total > 0 ? done * 100 / total : 100;
    const std::string line =
        absl::StrCat(what, "  ", FormatBytes(done), " of ", FormatBytes(total), "  ", percent, "%");
    err_ << "\r" << Ellipsize(line, err_terminal_.AsItIsNow().width - 1) << "\x1b[K" << (done >= total ? "\n" : "")
         << std::flush;
  };
}

}  // namespace luthier
