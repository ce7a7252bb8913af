#include "client/cli/completion.h"

#include <map>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cli/command_tree.h"
#include "client/cli/job_text.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

constexpr char kBash[] = R"(# luthier completion for bash: source <(luthier completion bash)
_luthier() {
  local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} piece words=()
  # bash also divides words at : and =. What nothing stands between in the line is one: --server HOST:PORT.
  for piece in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    if [[ ${#words[@]} -gt 0 && $line != [[:space:]]* ]]; then words[-1]+=$piece; else words+=("$piece"); fi
    line=${line#"${line%%[![:space:]]*}"}
    line=${line#"$piece"}
  done
  COMPREPLY=($(luthier __complete -- "${words[@]:1}" 2>/dev/null))
  [[ $piece == *[!:=]* ]] || piece=
  COMPREPLY=("${COMPREPLY[@]#"${words[-1]%"$piece"}"}")  # it goes behind the last : or =
  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$piece"))
}
complete -o filenames -F _luthier luthier
)";

constexpr char kZsh[] = R"(#compdef luthier
# luthier completion for zsh: source <(luthier completion zsh)
_luthier() {
  local -a candidates
  candidates=("${(@f)$(luthier __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "${candidates[1]}" ]]; then compadd -- "${candidates[@]}"; else _files; fi
}
compdef _luthier luthier
# As an autoloaded function this file is the first completion itself.
if [ "$funcstack[1]" = _luthier ]; then _luthier; fi
)";

constexpr char kFish[] = R"(# luthier completion for fish: luthier completion fish | source
function _luthier
  luthier __complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c luthier -f -a '(_luthier)'
complete -c luthier -n 'not string length -q -- (_luthier)' -F  # names of files where nothing is known
)";

const CLI::App* Subcommand(const CLI::App& command, const std::string& word) {
  for (const CLI::App* subcommand : Subcommands(command)) {
    if (subcommand->get_name() == word) return subcommand;
  }
  return nullptr;
}

// Whether the option takes the word behind it.
bool TakesValue(const CLI::App& command, const std::string& word) {
  if (!absl::StartsWith(word, "-") || absl::StrContains(word, "=")) return false;
  const CLI::Option* option = command.get_option_no_throw(word);
  return option != nullptr && option->get_items_expected_max() > 0;
}

// Flags of which every value is known.
const std::map<std::string, std::vector<std::string>>& KnownValues() {
  static const auto* values = new std::map<std::string, std::vector<std::string>>{
      {"-o", OutputFormatNames()},
      {"--output", OutputFormatNames()},
      {"--task", {"classification", "ner", "extraction", "qa", "tool_calling", "chat", "text"}},
      {"--tuning", {"lora", "full"}},
      {"--class", {"interactive", "standard", "background"}},
      {"--format", {"merged", "gguf"}},
      {"--role", {"viewer", "member", "admin", "agent"}},
      {"--loss-on", {"assistant", "completion", "all"}},
      {"--training.loss-on", {"assistant", "completion", "all"}},
      {"--too-long", {"refuse", "truncate", "keep_answer", "drop"}},
      {"--training.too-long", {"refuse", "truncate", "keep_answer", "drop"}},
      {"--training.schedule", {"linear", "cosine", "constant"}},
      {"--training.precision", {"fp32", "bf16"}},
      {"--training.order", {"shuffled", "grouped", "file"}},
      {"--evaluation.metric", {"exact_match", "json_equality", "field_f1", "loss"}},
      {"--checkpoint.publish", {"best", "last"}},
  };
  return *values;
}

// Values of flags that have a known set; files for all others.
std::vector<std::string> Values(CommandContext& context, const std::string& flag) {
  if (const auto found = KnownValues().find(flag); found != KnownValues().end()) return found->second;
  if (flag == "--state") return StateWords();
  if (flag == "--base-model") return BaseModelNames(context);
  if (flag == "--dataset") return DatasetNames(context);
  if (flag == "--model") return ModelNames(context);
  if (flag == "--node") return NodeNames(context);
  if (flag == "--tenant") return TenantNames(context);
  if (flag == "--context") return ContextNames(context);
  return {};
}

template <typename Item>
std::vector<std::string> Names(const absl::StatusOr<std::vector<Item>>& items) {
  std::vector<std::string> names;
  if (!items.ok()) return names;
  for (const Item& item : *items) names.push_back(ShortName(item.name()));
  return names;
}

constexpr absl::Duration kPatience = absl::Milliseconds(700);

// A person waits for the tab key, so what does not answer at once is left out.
absl::StatusOr<std::unique_ptr<Client>> QuickClient(CommandContext& context) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  Client::Options options = client->options();
  options.retry.attempts = 1;
  options.timeout = kPatience;
  return std::make_unique<Client>(options);
}

constexpr int kMostNames = 200;

// Of what `list` returns; none if the server does not answer at once.
template <typename List>
std::vector<std::string> NamesIn(CommandContext& context, const List& list) {
  const auto client = QuickClient(context);
  return client.ok() ? Names(list(**client)) : std::vector<std::string>();
}

}  // namespace

std::vector<std::string> JobNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListJobs({}, kMostNames); });
}

std::vector<std::string> DatasetNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListDatasets(kMostNames); });
}

std::vector<std::string> ModelNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListModels(kMostNames); });
}

std::vector<std::string> AliasNames(CommandContext& context) {
  std::vector<std::string> names;
  const auto client = QuickClient(context);
  if (!client.ok()) return names;
  const absl::Time end = absl::Now() + kPatience;
  for (const std::string& model : Names((*client)->ListModels(kMostNames))) {
    const auto versions = (*client)->ListModelVersions(FullName("models", model), kMostNames);
    if (!versions.ok() || absl::Now() > end) break;
    for (const v1::ModelVersion& version : *versions) {
      for (const std::string& alias : version.aliases()) names.push_back(absl::StrCat(model, "/", alias));
    }
  }
  return names;
}

std::vector<std::string> BaseModelNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListBaseModels(kMostNames); });
}

std::vector<std::string> SweepNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListSweeps(kMostNames); });
}

std::vector<std::string> NodeNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListNodes(kMostNames); });
}

std::vector<std::string> TenantNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListTenants(kMostNames); });
}

std::vector<std::string> TokenNames(CommandContext& context) {
  return NamesIn(context, [](Client& client) { return client.ListTokens(); });
}

std::vector<std::string> ContextNames(CommandContext& context) {
  std::vector<std::string> names;
  for (const auto& [name, server] : context.config().servers) names.push_back(name);
  return names;
}

std::vector<std::string> Complete(const CLI::App& app, CommandContext& context, const std::vector<std::string>& words) {
  const CLI::App* command = &app;
  const std::string partial = words.empty() ? "" : words.back();
  std::string flag;  // the one whose value comes next
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    const bool is_value = !flag.empty();
    flag = !is_value && TakesValue(*command, words[i]) ? words[i] : "";
    const CLI::App* next = is_value ? nullptr : Subcommand(*command, words[i]);
    if (next != nullptr) command = next;
  }
  std::vector<std::string> candidates;
  if (!flag.empty()) {
    candidates = Values(context, flag);
  } else if (const size_t equals = partial.find('='); absl::StartsWith(partial, "-") && equals != std::string::npos) {
    for (const std::string& value : Values(context, partial.substr(0, equals)))
      candidates.push_back(absl::StrCat(partial.substr(0, equals + 1), value));
  } else if (absl::StartsWith(partial, "-")) {
    candidates = FlagsOf(*command);
  } else {
    candidates = SubcommandNames(*command);
    if (candidates.empty()) candidates = context.CandidatesOf(*command);
  }
  std::erase_if(candidates, [&](const std::string& candidate) { return !absl::StartsWith(candidate, partial); });
  return candidates;
}

absl::StatusOr<std::string> CompletionScript(const std::string& shell) {
  if (shell == "bash") return kBash;
  if (shell == "zsh") return kZsh;
  if (shell == "fish") return kFish;
  return absl::InvalidArgumentError(absl::StrCat("SHELL: '", shell, "' is not known; give bash, zsh or fish"));
}

void AddCompletionCommand(CLI::App& app, CommandContext& context) {
  auto shell = std::make_shared<std::string>();
  CLI::App& command =
      context.AddCommand(app, "completion", "Print a script that completes commands, flags and names in your shell",
                         "  source <(luthier completion bash)\n"
                         "  source <(luthier completion zsh)\n"
                         "  luthier completion fish | source\n",
                         [&context, shell]() -> absl::Status {
                           LUTHIER_ASSIGN_OR_RETURN(const std::string script, CompletionScript(*shell));
                           context.out() << script;
                           return absl::OkStatus();
                         });
  command.add_option("SHELL", *shell, "bash, zsh or fish")->required();
  context.CompleteWith(command, [](CommandContext&) { return std::vector<std::string>{"bash", "zsh", "fish"}; });
}

}  // namespace luthier
