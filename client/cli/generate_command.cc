// `generate`: answers of a tuned model, from luthier-trainer on this machine.
#include <unistd.h>

#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/cache.h"
#include "client/cli/command.h"
#include "client/cli/model_files.h"
#include "client/cli/model_names.h"
#include "client/cli/sister_program.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string model;
  std::string base;
  std::string adapter;
  std::string system;
  std::string prompt;
  std::string max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed;
  std::vector<std::string> stops;
};

// What luthier-trainer loads.
struct Folders {
  std::string base;
  std::string adapter;  // empty: the base itself
};

absl::StatusOr<std::string> BaseFolder(CommandContext& context, const std::string& base) {
  if (fs::is_directory(base)) return base;
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::BaseModel> model = client->GetBaseModel(FullName("baseModels", base));
  if (absl::IsNotFound(model.status()) || absl::IsInvalidArgument(model.status())) {
    return absl::NotFoundError(absl::StrCat("--base: '", base, "' is neither a folder nor a registered base model; ",
                                            "luthier model list names those"));
  }
  LUTHIER_RETURN_IF_ERROR(model.status());
  return CachedFolder(*client, ToRemoteFolder(*model), context.ShowTransfer("downloading the base model"));
}

// Of the published model.
absl::StatusOr<Folders> FetchModel(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::ModelVersion> found = client->GetModelVersion(VersionName(arguments.model));
  LUTHIER_RETURN_IF_ERROR(WithBaseModelNamed(found.status(), *client, arguments.model, "give it with --base"));
  const v1::ModelVersion& version = *found;
  if (version.kind() == v1::ModelVersion::GGUF_ADAPTER) {
    return absl::InvalidArgumentError(absl::StrCat("--model: ", version.name(),
                                                   " is an adapter for llama.cpp, which is downloaded with: luthier "
                                                   "model download; give the version that it was exported from"));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::string downloaded, CachedFolder(*client, ToRemoteFolder(version),
                                                                      context.ShowTransfer("downloading the model")));
  if (version.kind() == v1::ModelVersion::FULL_MODEL) return Folders{downloaded, ""};
  if (arguments.base.empty() && absl::IsNotFound(client->GetBaseModel(version.base_model()).status())) {
    return absl::NotFoundError(absl::StrCat("--model: ", version.name(), " is an adapter for ", version.base_model(),
                                            ", which is not registered any more; import it again (luthier model "
                                            "import), or give its folder with --base"));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::string base,
                           BaseFolder(context, arguments.base.empty() ? version.base_model() : arguments.base));
  return Folders{base, downloaded};
}

absl::StatusOr<Folders> FindFolders(CommandContext& context, const Arguments& arguments) {
  if (arguments.model.empty() && arguments.base.empty()) {
    return absl::InvalidArgumentError(
        "nothing to answer with: give --model NAME of a published model, or --base FOLDER");
  }
  if (!arguments.model.empty() && !arguments.adapter.empty()) {
    return absl::InvalidArgumentError("--adapter: a published --model brings its own; give one of the two");
  }
  if (!arguments.model.empty()) return FetchModel(context, arguments);
  LUTHIER_ASSIGN_OR_RETURN(const std::string base, BaseFolder(context, arguments.base));
  return Folders{base, arguments.adapter};
}

std::vector<std::string> TrainerArguments(const Arguments& arguments, const Folders& folders, bool json) {
  std::vector<std::string> line = {"luthier-trainer", "generate", "--base", folders.base};
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) line.insert(line.end(), {flag, value});
  };
  add("--adapter", folders.adapter);
  add("--system", arguments.system);
  add("--prompt", arguments.prompt);
  add("--max-new-tokens", arguments.max_new_tokens);
  add("--temperature", arguments.temperature);
  add("--top-p", arguments.top_p);
  add("--top-k", arguments.top_k);
  add("--repetition-penalty", arguments.repetition_penalty);
  for (const std::string& stop : arguments.stops) add("--stop", stop);
  add("--seed", arguments.seed);
  if (json) add("-o", "json");
  return line;
}

absl::Status Generate(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const Folders folders, FindFolders(context, arguments));
  if (arguments.prompt.empty() && isatty(STDIN_FILENO)) context.Say("one prompt a line; Ctrl-D ends");
  return RunSisterProgram(TrainerArguments(arguments, folders, context.ForPrograms()));
}

}  // namespace

void AddGenerateCommand(CLI::App& app, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      app, "generate", "Answer prompts with a published model, or with local folders",
      "  luthier generate --model intents-1 --prompt \"Where is my parcel?\"\n"
      "  luthier generate --base luthier-tiny --prompt \"Where is my parcel?\"     # the base model, to compare\n"
      "  luthier generate --base ./base --adapter ./adapter < prompts.txt        # needs no server\n",
      [&context, arguments] { return Generate(context, *arguments); });
  command.add_option("--model", arguments->model, "Published model, or MODEL/VERSION; downloaded into a cache")
      ->type_name("NAME");
  command.add_option("--base", arguments->base, "Base model: a folder, or a registered name")->type_name("FOLDER|NAME");
  command.add_option("--adapter", arguments->adapter, "Adapter folder, with --base")->type_name("FOLDER");
  command
      .add_option("--prompt", arguments->prompt, "User message; without it, one line of standard input after another")
      ->type_name("TEXT");
  command.add_option("--system", arguments->system, "System message")->type_name("TEXT");
  command.add_option("--max-new-tokens", arguments->max_new_tokens, "Tokens to generate at most; default: 64")
      ->type_name("N");
  command.add_option("--temperature", arguments->temperature, "0 (default) always takes the likeliest token")
      ->type_name("X");
  command
      .add_option("--top-p", arguments->top_p,
                  "Nucleus sampling: the likeliest tokens that have this probability together; default: 1")
      ->type_name("P");
  command.add_option("--top-k", arguments->top_k, "Sample from so many of the likeliest tokens; 0 (default) keeps all")
      ->type_name("N");
  command
      .add_option("--repetition-penalty", arguments->repetition_penalty,
                  "Above 1 tokens of prompt and answer become less likely; 1 is the default")
      ->type_name("X");
  command.add_option("--stop", arguments->stops, "Text that ends an answer, and is no part of it; may be repeated")
      ->type_name("TEXT");
  command.add_option("--seed", arguments->seed, "Seed of sampling; default: 1")->type_name("N");
}

}  // namespace luthier
