#include "client/cli/suggest.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/did_you_mean.h"

namespace luthier {
namespace {

std::vector<std::string> FlagsOf(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

std::vector<std::string> SubcommandsOf(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* subcommand : command.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(subcommand->get_name());
  return names;
}

std::string Suggestion(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = DidYouMean(word, known);
  return near.empty() ? "" : absl::StrCat("; did you mean '", near, "'?");
}

// The first word that no command or option took.
std::string Unexpected(const CLI::App& command, const std::string& word) {
  if (absl::StartsWith(word, "-")) {
    const std::string flag = word.substr(0, word.find('='));
    return absl::StrCat("unknown flag ", flag, Suggestion(flag, FlagsOf(command)));
  }
  const std::vector<std::string> subcommands = SubcommandsOf(command);
  if (subcommands.empty()) return absl::StrCat("unexpected argument '", word, "'");
  return absl::StrCat("unknown command '", word, "'", Suggestion(word, subcommands));
}

}  // namespace

const CLI::App& DeepestCommand(const CLI::App& app) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  return *command;
}

std::string CommandPath(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? command.get_name() : absl::StrCat(CommandPath(*parent), " ", command.get_name());
}

std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = DeepestCommand(app);
  std::string what = error.what();
  if (const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
      error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) && !rest.empty()) {
    what = Unexpected(command, rest.front());
  }
  return absl::StrCat(what, "\nsee: ", CommandPath(command), " --help");
}

}  // namespace luthier
