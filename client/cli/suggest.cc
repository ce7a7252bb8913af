#include "client/cli/suggest.h"

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/cli/command_tree.h"
#include "lib/base/did_you_mean.h"

namespace luthier {
namespace {

std::string Suggestion(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = DidYouMean(word, known);
  return near.empty() ? "" : absl::StrCat("; did you mean '", near, "'?");
}

// Also of a field that was given without its block: `--training.epochs` of `--epochs`.
std::string FlagSuggestion(const std::string& flag, const std::vector<std::string>& known) {
  const std::string ending = absl::StrCat(".", absl::StripPrefix(absl::StrReplaceAll(flag, {{"_", "-"}}), "--"));
  std::vector<std::string> fields;
  for (const std::string& name : known) {
    if (absl::EndsWith(name, ending)) fields.push_back(name);
  }
  if (fields.empty()) {  // or of one that was not written to its end: `--max-queued-jobs` of `--max-queued`
    const std::string beginning = absl::StrCat(flag, "-");
    for (const std::string& name : known) {
      if (absl::StartsWith(name, beginning)) fields.push_back(name);
    }
  }
  if (fields.empty()) return Suggestion(flag, known);
  return absl::StrCat("; did you mean '", absl::StrJoin(fields, "' or '"), "'?");
}

// Commands of this program for words that other programs have.
std::vector<std::string> OurWords(const std::string& word) {
  using Words = std::map<std::string, std::vector<std::string>>;
  static const auto* words = new Words{
      {"add", {"import", "upload"}},
      {"base-model", {"model"}},
      {"chat", {"generate"}},
      {"create", {"submit", "upload"}},
      {"describe", {"get"}},
      {"export", {"download"}},
      {"infer", {"generate"}},
      {"info", {"get"}},
      {"inspect", {"get"}},
      {"kill", {"cancel"}},
      {"log", {"logs"}},
      {"ls", {"list"}},
      {"new", {"create", "submit"}},
      {"register", {"import"}},
      {"remove", {"delete"}},
      {"rm", {"delete"}},
      {"run", {"submit"}},
      {"show", {"get"}},
      {"status", {"get"}},
      {"stop", {"cancel"}},
      {"tail", {"logs"}},
      {"train", {"submit"}},
  };
  const auto found = words->find(word);
  return found == words->end() ? std::vector<std::string>() : found->second;
}

// The word or one of ours for it, where it is a command below this one: `job submit` of `submit`.
std::vector<std::string> CommandsCalled(const CLI::App& command, const std::string& word) {
  std::vector<std::string> wanted = OurWords(word);
  wanted.insert(wanted.begin(), word);
  std::vector<std::string> found;
  for (const std::string& name : wanted) {
    for (const CLI::App* child : Subcommands(command)) {
      if (child->get_name() == name) found.push_back(name);
      for (const CLI::App* grandchild : Subcommands(*child)) {
        if (grandchild->get_name() == name) found.push_back(absl::StrCat(child->get_name(), " ", name));
      }
    }
  }
  return found;
}

std::string CommandSuggestion(const CLI::App& command, const std::string& word) {
  constexpr size_t kMost = 3;
  std::vector<std::string> called = CommandsCalled(command, word);
  if (called.empty()) return Suggestion(word, SubcommandNames(command));
  called.resize(std::min(called.size(), kMost));
  return absl::StrCat("; did you mean '", absl::StrJoin(called, "' or '"), "'?");
}

// The first word that no command or option took.
std::string Unexpected(const CLI::App& command, const std::string& word) {
  if (absl::StartsWith(word, "-")) {
    const std::string flag = word.substr(0, word.find('='));
    if (command.get_option_no_throw(flag) != nullptr)  // else it would have been taken
      return absl::StrCat(flag, " is a flag of `", CommandPath(command), "`; write it after that");
    return absl::StrCat("unknown flag ", flag, FlagSuggestion(flag, FlagsOf(command)));
  }
  if (!SubcommandNames(command).empty())
    return absl::StrCat("unknown command '", word, "'", CommandSuggestion(command, word));
  const bool takes_file = command.get_option_no_throw("--file") != nullptr;
  return absl::StrCat("unexpected argument '", word, "'", takes_file ? "; a job file is given with -f" : "");
}

// What CLI11 says of values in words of its own: `Could not convert: FLAG = VALUE`, `FLAG: Value abc not in range 1 to
// 9`, `FLAG: At Most 1 required but received 2`. Numbers are of the type N where they are whole; ranges have such only.
std::string ValueFault(const CLI::App& command, const std::string& what) {
  constexpr char kCouldNot[] = "Could not convert: ", kEquals[] = " = ";
  const size_t equals = what.find(kEquals);
  if (absl::StartsWith(what, kCouldNot) && equals != std::string::npos) {
    const std::string flag = what.substr(sizeof(kCouldNot) - 1, equals - (sizeof(kCouldNot) - 1));
    const CLI::Option* option = command.get_option_no_throw(flag);
    const bool whole = option != nullptr && absl::StartsWith(option->get_type_name(), "N");
    return absl::StrCat(flag, ": '", what.substr(equals + sizeof(kEquals) - 1), "' is no ", whole ? "whole " : "",
                        "number that fits; give one, such as 2");
  }
  constexpr char kValue[] = ": Value ", kNotInRange[] = " not in range ";
  const size_t value = what.find(kValue), range = what.find(kNotInRange);
  if (value != std::string::npos && range != std::string::npos && value < range) {
    const size_t start = value + sizeof(kValue) - 1;
    return absl::StrCat(what.substr(0, value), ": '", what.substr(start, range - start), "' is no whole number from ",
                        what.substr(range + sizeof(kNotInRange) - 1));
  }
  if (const size_t end = what.find(": At Most 1 required"); end != std::string::npos)
    return absl::StrCat(what.substr(0, end), ": is given more than once; give it once");
  return what;
}

}  // namespace

bool NamesUnknownCommand(const CLI::App& app) {
  const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
  return !rest.empty() && !absl::StartsWith(rest.front(), "-") && !SubcommandNames(DeepestCommand(app)).empty();
}

std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = DeepestCommand(app);
  std::string what = ValueFault(command, error.what());
  if (const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
      error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) && !rest.empty()) {
    what = Unexpected(command, rest.front());
  }
  return absl::StrCat(what, "\nsee: ", CommandPath(command), " --help");
}

}  // namespace luthier
