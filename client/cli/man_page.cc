#include "client/cli/man_page.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/cli/command.h"
#include "client/cli/command_tree.h"

namespace luthier {
namespace {

constexpr char kEnvironment[] = R"(.SH ENVIRONMENT
.TP
.BR LUTHIER_SERVER ", " LUTHIER_CONTEXT
Which server, if neither \fB\-\-server\fR nor \fB\-\-context\fR says so.
.TP
.BR LUTHIER_TOKEN ", " LUTHIER_TOKEN_FILE
The token that every call carries, or the file that holds it.
.TP
.BR LUTHIER_TLS_CA ", " LUTHIER_TLS_CERT ", " LUTHIER_TLS_KEY
Files in PEM: the authority that signed the server's certificate; certificate and key of one's own, if the server wants them.
.TP
.BR LUTHIER_CONFIG
The config file.
.TP
.BR NO_COLOR
No colours, also on a terminal.
.SH FILES
.TP
.I ~/.config/luthier/config.yaml
Contexts, and the format of output that is used if none is given.
)";

// Text as itself: a hyphen that can be copied, no escapes, no request at the start of a line, nothing that is no ASCII
// (where the locale is C, `man` leaves it out).
std::string Roff(absl::string_view text) {
  std::string escaped =
      absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}, {"\n.", "\n\\&."}, {"\n'", "\n\\&'"}, {"…", "\\&..."}});
  if (absl::StartsWith(escaped, ".") || absl::StartsWith(escaped, "'")) escaped.insert(0, "\\&");
  return escaped;
}

// Lines as they are.
std::string Verbatim(absl::string_view text) {
  return absl::StrCat(".nf\n", Roff(absl::StripTrailingAsciiWhitespace(text)), "\n.fi\n");
}

std::vector<const CLI::Option*> Options(const CLI::App& command, bool global) {
  return command.get_options([&](const CLI::Option* option) {
    return !option->get_group().empty() && (option->get_group() == kGlobalGroup) == global;
  });
}

std::string Tagged(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back(absl::StrCat("\\fB", Roff("-" + name), "\\fR"));
  for (const std::string& name : option.get_lnames()) names.push_back(absl::StrCat("\\fB", Roff("--" + name), "\\fR"));
  if (option.get_positional())
    names.push_back(absl::StrCat("\\fI", Roff(option.get_name(/*positional=*/true)), "\\fR"));
  const bool value = !option.get_positional() && option.get_items_expected_max() > 0;
  const std::string type = value ? absl::StrCat(" \\fI", Roff(option.get_type_name()), "\\fR") : "";
  return absl::StrCat(".TP\n", absl::StrJoin(names, ", "), type, "\n", Roff(option.get_description()), "\n");
}

// `luthier job watch [OPTIONS] JOB`.
std::string Synopsis(const CLI::App& command) {
  std::string line = absl::StrCat("\\fB", Roff(CommandPath(command)), "\\fR [\\fIOPTIONS\\fR]");
  for (const CLI::Option* option : Options(command, /*global=*/false)) {
    if (!option->get_positional()) continue;
    const std::string name = absl::StrCat("\\fI", Roff(option->get_name(/*positional=*/true)), "\\fR");
    absl::StrAppend(&line, " ", option->get_required() ? name : absl::StrCat("[", name, "]"));
    if (option->get_items_expected_max() > 1) absl::StrAppend(&line, " ...");
  }
  return line;
}

// The commands that do something, depth first; a noun alone only shows its help.
void AppendCommands(const CLI::App& command, std::string& page) {
  const std::vector<const CLI::App*> subcommands = Subcommands(command);
  for (const CLI::App* subcommand : subcommands) AppendCommands(*subcommand, page);
  if (!subcommands.empty()) return;
  absl::StrAppend(&page, ".SS ", Synopsis(command), "\n", Roff(command.get_description()), "\n");
  for (const CLI::Option* option : Options(command, /*global=*/false)) absl::StrAppend(&page, Tagged(*option));
  if (!command.get_footer().empty()) absl::StrAppend(&page, ".PP\n", Verbatim(command.get_footer()));
}

}  // namespace

std::string ManPage(const CLI::App& app) {
  std::string page =
      absl::StrCat(".TH LUTHIER 1 \"\" \"luthier " LUTHIER_VERSION "\" \"User Commands\"\n",
                   ".SH NAME\nluthier \\- fine\\-tune language models on your own machines\n",
                   ".SH SYNOPSIS\n\\fBluthier\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]\n",
                   ".SH DESCRIPTION\n", Roff(app.get_description()), "\n.SH COMMANDS\n");
  AppendCommands(app, page);
  absl::StrAppend(&page, ".SH OPTIONS\nEvery command takes these.\n");
  for (const CLI::Option* option : Options(app, /*global=*/true)) absl::StrAppend(&page, Tagged(*option));
  const std::pair<std::string, std::string> footer = absl::StrSplit(app.get_footer(), absl::MaxSplits("\n\n", 1));
  absl::StrAppend(&page, ".SH EXAMPLES\n", Verbatim(footer.first), ".SH EXIT STATUS\n", Verbatim(footer.second),
                  kEnvironment);
  return page;
}

}  // namespace luthier
