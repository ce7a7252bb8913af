// What every command of `luthier` shares: options, outputs, the connection.
#pragma once

#include <functional>
#include <istream>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/config.h"
#include "client/cli/interrupts.h"
#include "client/cli/output.h"
#include "client/cli/terminal.h"
#include "client/lib/client.h"
#include "client/lib/transfer_progress.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "nlohmann/json.hpp"

namespace luthier {

// The group of the flags that every command takes.
inline constexpr char kGlobalGroup[] = "Global";

struct GlobalFlags {
  std::string server;
  std::string context;
  std::string config_path;
  std::string output;  // empty: as the config says
};

// Of one run of the program. The parse chooses one action; main runs it.
class CommandContext {
 public:
  // `out` and `err` with what is at their other ends.
  CommandContext(std::ostream& out, const Terminal& out_terminal, std::ostream& err, const Terminal& err_terminal,
                 Interrupts& interrupts);
  // Where a person answers questions; without it nobody is asked.
  void AnswersComeFrom(std::istream& in) { answers_ = &in; }

  // Adds the flags to a command.
  void AddGlobalFlags(CLI::App& command);
  // A command with help, examples for its end, and what it does.
  CLI::App& AddCommand(CLI::App& parent, const std::string& name, const std::string& help, const std::string& examples,
                       std::function<absl::Status()> action);
  // A noun: a command that only holds others.
  CLI::App& AddNoun(CLI::App& parent, const std::string& name, const std::string& help);

  const std::function<absl::Status()>& action() const { return action_; }

  // For shell completion: candidates for the arguments of a command that are no flags.
  using Candidates = std::function<std::vector<std::string>(CommandContext&)>;
  void CompleteWith(const CLI::App& command, Candidates candidates) { candidates_[&command] = std::move(candidates); }
  std::vector<std::string> CandidatesOf(const CLI::App& command);

  // For shell completion: takes which server is meant from the words of a line, of which the last is being written.
  void TakeServerFlags(const std::vector<std::string>& words);

  // Reads the config files. Errors: INVALID_ARGUMENT. Call before the functions below.
  absl::Status Load();
  const Config& config() const { return config_; }
  const std::string& config_path() const { return flags_.config_path; }
  const std::string& server_flag() const { return flags_.server; }
  OutputFormat format() const { return format_; }
  bool ForPrograms() const { return format_ == OutputFormat::kJson || format_ == OutputFormat::kYaml; }
  // The connection, dialled by the first call. Errors: INVALID_ARGUMENT for an unknown context, or for a config file
  // that was named and does not exist.
  absl::StatusOr<Client*> client();

  std::ostream& out() { return out_; }
  const Terminal& out_terminal() const { return out_terminal_; }
  std::ostream& err() { return err_; }
  const Terminal& err_terminal() const { return err_terminal_; }
  Interrupts& interrupts() { return interrupts_; }

  // A message for the person, on standard error.
  void Say(const std::string& message);
  void SayWarnings(const google::protobuf::RepeatedPtrField<std::string>& warnings);
  // The server is away, and is asked again until it is back.
  void SayThatItWaits(const absl::Status& why);
  // Asks the person at the terminal before `what` is done, such as "delete datasets/words"; scripts are not asked.
  // Errors: CANCELLED unless the answer is yes.
  absl::Status Confirm(const std::string& what);
  // Of a command that calls Confirm().
  void AddYesFlag(CLI::App& command);
  // Prints a message as -o json or yaml.
  void PrintForPrograms(const nlohmann::json& value) { out_ << FormatJson(value, format_); }
  // One of those that come by and by: a line of JSON, or a document of YAML.
  void PrintOneForPrograms(const nlohmann::json& value);

  // Draws the progress of a transfer on a terminal; in a file it says nothing.
  TransferProgress ShowTransfer(const std::string& what);

 private:
  // Whoever names one means its servers: without it the command would go to another.
  absl::Status CheckConfigFile() const;

  std::ostream& out_;
  const Terminal out_terminal_;
  std::ostream& err_;
  const Terminal err_terminal_;
  Interrupts& interrupts_;
  std::istream* answers_ = nullptr;
  bool yes_ = false;
  GlobalFlags flags_;
  Config config_, project_;
  OutputFormat format_ = OutputFormat::kTable;
  std::unique_ptr<Client> client_;
  std::function<absl::Status()> action_;
  std::map<const CLI::App*, Candidates> candidates_;
};

// Each adds the commands of one noun (one file each).
void AddJobCommands(CLI::App& app, CommandContext& context);
void AddJobSubmitCommand(CLI::App& job, CommandContext& context);
void AddJobCloneCommand(CLI::App& job, CommandContext& context);
void AddJobEstimateCommand(CLI::App& job, CommandContext& context);
void AddJobListCommand(CLI::App& job, CommandContext& context);
void AddJobLogsCommand(CLI::App& job, CommandContext& context);
void AddJobCompareCommand(CLI::App& job, CommandContext& context);
void AddJobCheckpointCommands(CLI::App& job, CommandContext& context);
void AddJobMetricsCommand(CLI::App& job, CommandContext& context);
void AddJobStepCommands(CLI::App& job, CommandContext& context);
void AddDatasetCommands(CLI::App& app, CommandContext& context);
void AddDatasetCheckCommand(CLI::App& dataset, CommandContext& context);
void AddModelCommands(CLI::App& app, CommandContext& context);
void AddModelAliasCommands(CLI::App& model, CommandContext& context);
void AddModelExportCommand(CLI::App& model, CommandContext& context);
void AddModelImportCommand(CLI::App& model, CommandContext& context);
void AddNodeCommands(CLI::App& app, CommandContext& context);
void AddQueueCommands(CLI::App& app, CommandContext& context);
void AddTenantCommands(CLI::App& app, CommandContext& context);
void AddSweepCommands(CLI::App& app, CommandContext& context);
void AddSweepCreateCommand(CLI::App& sweep, CommandContext& context);
void AddSweepWatchCommand(CLI::App& sweep, CommandContext& context);
void AddAdminCommands(CLI::App& app, CommandContext& context);
void AddTokenCommands(CLI::App& admin, CommandContext& context);
void AddGenerateCommand(CLI::App& app, CommandContext& context);
void AddContextCommands(CLI::App& app, CommandContext& context);
void AddCompletionCommand(CLI::App& app, CommandContext& context);
void AddVersionCommand(CLI::App& app, CommandContext& context);

// Names for completion; empty if no server answers at once.
std::vector<std::string> JobNames(CommandContext& context);
std::vector<std::string> DatasetNames(CommandContext& context);
std::vector<std::string> ModelNames(CommandContext& context);
std::vector<std::string> AliasNames(CommandContext& context);  // MODEL/ALIAS
std::vector<std::string> BaseModelNames(CommandContext& context);
std::vector<std::string> SweepNames(CommandContext& context);
std::vector<std::string> NodeNames(CommandContext& context);
std::vector<std::string> TenantNames(CommandContext& context);
std::vector<std::string> TokenNames(CommandContext& context);
// Of the config file.
std::vector<std::string> ContextNames(CommandContext& context);

}  // namespace luthier
