#include "client/cli/app.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/command_tree.h"
#include "client/cli/completion.h"
#include "client/cli/exit_code.h"
#include "client/cli/help_formatter.h"
#include "client/cli/job_flags.h"
#include "client/cli/man_page.h"
#include "client/cli/suggest.h"
#include "client/lib/grpc_status.h"

namespace luthier {
namespace {

constexpr char kFooter[] = R"(Start here:
  luthierd --with-local-worker &                                          # a server with an agent, on this machine
  luthier model import luthier-tiny examples/base/luthier-tiny            # a base model
  luthier dataset upload classification examples/tasks/classification     # rows to learn
  luthier job submit -f examples/tasks/classification/job.yaml --watch    # train
  luthier job compare JOB                                                 # base against tuned model
  luthier model download JOB                                              # the adapter, in PEFT's format

Exit codes: 0 ok, 1 failure, 2 cancelled, 3 wrong command line or input, 4 authentication, 5 not found,
            6 server unavailable, 7 job failed, 8 timeout)";

constexpr char kUnreachableRemedy[] =
    "start one with `luthierd --with-local-worker`, or name another with --server, LUTHIER_SERVER or `luthier context "
    "use`; if it is there and wants TLS, set LUTHIER_TLS_CA (and LUTHIER_TLS_CERT and LUTHIER_TLS_KEY if it wants a "
    "certificate of its callers), and if it wants none, unset them";

constexpr char kHungUpRemedy[] =
    "something there hangs up: try again if it was just started anew; if it wants TLS, set LUTHIER_TLS_CA (and "
    "LUTHIER_TLS_CERT, LUTHIER_TLS_KEY) to files of its authority; if it does not, unset them";

// The commands that list what there is of the kinds that were not found; empty if there is none.
std::string WhereToLook(const absl::Status& status) {
  static constexpr std::pair<absl::string_view, absl::string_view> kLists[] = {
      {"jobs/", "job list"},         {"sweeps/", "sweep list"}, {"datasets/", "dataset list"},
      {"baseModels/", "model list"}, {"models/", "model list"}, {"nodes/", "node list"}};
  if (!absl::IsNotFound(status) || !absl::EndsWith(status.message(), " does not exist")) return "";
  std::vector<absl::string_view> commands;
  for (const auto& [collection, command] : kLists) {
    if (absl::StrContains(status.message(), collection) && !absl::c_linear_search(commands, command))
      commands.push_back(command);
  }
  return commands.empty() ? "" : absl::StrCat("see: luthier ", absl::StrJoin(commands, ", luthier "));
}

// `error: …`, with the further lines of a list of violations below.
int Fail(CommandContext& context, const absl::Status& status) {
  const std::vector<std::string> lines = absl::StrSplit(status.message(), '\n');
  const bool outcome = ExitCodeOf(status) == ExitCode::kCancelled;
  context.err() << (outcome ? "" : context.err_terminal().Paint(Colour::kRed, "error: "));
  for (size_t i = 0; i < lines.size(); ++i)
    context.err() << (i > 0 && !outcome ? "       " : "") << OneLine(lines[i]) << "\n";
  if (WasHungUpOn(status)) {
    context.err() << "       " << kHungUpRemedy << "\n";
  } else if (IsUnreachable(status)) {
    context.err() << "       " << kUnreachableRemedy << "\n";
  } else if (const std::string list = WhereToLook(status); !list.empty()) {
    context.err() << "       " << list << "\n";
  }
  context.err() << std::flush;
  return static_cast<int>(ExitCodeOf(status));
}

// The exit code, once what was printed has arrived.
int Finish(CommandContext& context, absl::Status status) {
  if (!context.out().flush() && status.ok())
    status = absl::DataLossError("the output cannot be written, so some of it is missing; is the disk full?");
  return status.ok() ? 0 : Fail(context, status);
}

// CLI11 puts the command's own name behind what it is given.
int ShowHelp(CommandContext& context, const CLI::App& command) {
  context.out() << command.help(command.get_parent() == nullptr ? "" : CommandPath(*command.get_parent()));
  return Finish(context, absl::OkStatus());
}

// Last, so that a command's own flags stand first in its help.
void AddGlobalFlagsToAll(CLI::App& app, CommandContext& context) {
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) AddGlobalFlagsToAll(*command, context);
  context.AddGlobalFlags(app);
}

// Of a script whose variable is not set. As no flag it would mean the default, such as a name that nobody chose.
void RefuseEmptyValues(const CLI::App& app) {
  for (const CLI::App* command = &DeepestCommand(app); command != nullptr; command = command->get_parent()) {
    for (const CLI::Option* option : command->get_options()) {
      const bool is_flag = !option->get_lnames().empty();
      if (!is_flag || !absl::c_linear_search(option->results(), "")) continue;
      throw CLI::ValidationError(option->get_name(), "is empty; give a value, or leave the flag out");
    }
  }
}

// `--flag=` as two words: CLI11 would take the next word for the value.
std::vector<std::string> WithEmptyValues(std::vector<std::string> arguments) {
  std::vector<std::string> words;
  for (std::string& argument : arguments) {
    const bool ends_empty = absl::StartsWith(argument, "--") && argument.find('=') == argument.size() - 1;
    if (ends_empty) argument.pop_back();
    words.push_back(std::move(argument));
    if (ends_empty) words.emplace_back();
  }
  return words;
}

// What people try first: `luthier help job submit`, `luthier --version`.
void TakeCommonWords(std::vector<std::string>& arguments) {
  if (arguments.empty()) return;
  if (arguments.front() == "--version") arguments.front() = "version";
  if (arguments.front() != "help") return;
  arguments.erase(arguments.begin());
  arguments.emplace_back("--help");
}

int RunComplete(const CLI::App& app, CommandContext& context, std::vector<std::string> words) {
  if (!words.empty() && words.front() == "--") words.erase(words.begin());
  context.TakeServerFlags(words);
  if (!context.Load().ok()) return 0;
  for (const std::string& candidate : Complete(app, context, words)) context.out() << candidate << "\n";
  return 0;
}

}  // namespace

void AddCommands(CLI::App& app, CommandContext& context) {
  app.require_subcommand(0, 1);
  app.formatter(std::make_shared<HelpFormatter>(context.out_terminal().width));  // first: commands inherit it
  AddJobCommands(app, context);
  AddSweepCommands(app, context);
  AddDatasetCommands(app, context);
  AddModelCommands(app, context);
  AddNodeCommands(app, context);
  AddQueueCommands(app, context);
  AddTenantCommands(app, context);
  AddAdminCommands(app, context);
  AddGenerateCommand(app, context);
  AddContextCommands(app, context);
  AddCompletionCommand(app, context);
  AddVersionCommand(app, context);
  app.footer(kFooter);  // last: commands would inherit it
  AddGlobalFlagsToAll(app, context);
}

int RunApp(std::vector<std::string> arguments, CommandContext& context) {
  CLI::App app(
      "Fine-tune language models on your own machines: submit jobs, watch them, compare and download what they "
      "learned.",
      "luthier");
  AddCommands(app, context);
  if (!arguments.empty() && arguments.front() == kCompleteCommand) {
    arguments.erase(arguments.begin());
    return RunComplete(app, context, std::move(arguments));
  }
  if (!arguments.empty() && arguments.front() == kManPageCommand) {
    context.out() << ManPage(app);
    return Finish(context, absl::OkStatus());
  }
  TakeCommonWords(arguments);
  for (std::string& argument : arguments) argument = WithHyphens(std::move(argument));
  arguments = WithEmptyValues(std::move(arguments));
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app.parse(arguments);
    RefuseEmptyValues(app);
  } catch (const CLI::CallForHelp&) {
    // The help of the command above would look as if this one existed, also to a script.
    if (NamesUnknownCommand(app)) {
      const CLI::ExtrasError unknown(app.remaining(/*recurse=*/true));
      return Fail(context, absl::InvalidArgumentError(UsageError(app, unknown)));
    }
    return ShowHelp(context, DeepestCommand(app));
  } catch (const CLI::ParseError& error) {
    return Fail(context, absl::InvalidArgumentError(UsageError(app, error)));
  }
  if (!context.action()) return ShowHelp(context, DeepestCommand(app));  // a noun alone
  absl::Status status = context.Load();
  if (status.ok()) status = context.action()();
  return Finish(context, std::move(status));
}

}  // namespace luthier
