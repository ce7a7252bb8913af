#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/exit_code.h"
#include "client/cli/model_names.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "client/lib/model_download.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

constexpr int kMostListed = 10000;

struct ImportArguments {
  std::string id;
  std::string folder;
};

absl::Status Import(CommandContext& context, const ImportArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const std::string folder = std::filesystem::absolute(arguments.folder).lexically_normal().string();
  LUTHIER_ASSIGN_OR_RETURN(const v1::BaseModel model, client->RegisterBaseModel(ShortName(arguments.id), folder));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(model));
    return absl::OkStatus();
  }
  context.Say(absl::StrCat(model.model_type(), ", ", FormatCount(model.parameters()), " parameters in ", model.dtype(),
                           ", context of ", FormatCount(model.context_length()), " tokens"));
  context.out() << model.name() << std::endl;
  return absl::OkStatus();
}

struct ListArguments {
  bool base = false;
  bool tuned = false;
};

int64_t Size(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files) {
  int64_t bytes = 0;
  for (const v1::ModelFile& file : files) bytes += file.size_bytes();
  return bytes;
}

// Every version of every tuned model, newest model first.
absl::StatusOr<std::vector<v1::ModelVersion>> AllVersions(Client& client) {
  std::vector<v1::ModelVersion> all;
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Model> models, client.ListModels(kMostListed));
  for (const v1::Model& model : models) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::ModelVersion> versions,
                             client.ListModelVersions(model.name(), kMostListed));
    all.insert(all.end(), versions.begin(), versions.end());
  }
  return all;
}

std::string KindWord(v1::ModelVersion::Kind kind) {
  return kind == v1::ModelVersion::FULL_MODEL ? "full model" : "adapter";
}

std::string ModelTable(const std::vector<v1::BaseModel>& bases, const std::vector<v1::ModelVersion>& versions,
                       bool wide, const Terminal& terminal) {
  std::vector<Column> columns = {
      {"NAME", false, true}, {"KIND"}, {"BASE MODEL", false, true}, {"SIZE", true}, {"AGE", true}};
  if (wide) {
    for (const char* heading : {"PARAMETERS", "CONTEXT"}) columns.push_back({heading, true});
    columns.push_back({"JOB", false, true});
  }
  Table table(columns);
  const auto age = [](const auto& message) { return FormatAge(absl::Now() - ToTime(message.create_time())); };
  for (const v1::BaseModel& base : bases) {
    std::vector<Cell> cells = {ShortName(base.name()), absl::StrCat("base, ", base.model_type()), "-",
                               FormatBytes(Size(base.files())), age(base)};
    if (wide) {
      for (const std::string& cell :
           {FormatCount(base.parameters()), FormatCount(base.context_length()), std::string("-")})
        cells.emplace_back(cell);
    }
    table.AddRow(std::move(cells));
  }
  for (const v1::ModelVersion& version : versions) {
    const std::string model = version.name().substr(0, version.name().find("/versions/"));
    std::vector<Cell> cells = {absl::StrCat(ShortName(model), "/", ShortName(version.name())), KindWord(version.kind()),
                               ShortName(version.base_model()), FormatBytes(Size(version.files())), age(version)};
    if (wide) {
      for (const std::string& cell : {std::string("-"), std::string("-"), ShortName(version.job())})
        cells.emplace_back(cell);
    }
    table.AddRow(std::move(cells));
  }
  return table.Render(terminal);
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::vector<v1::BaseModel> bases;
  std::vector<v1::ModelVersion> versions;
  if (arguments.base || !arguments.tuned) {
    LUTHIER_ASSIGN_OR_RETURN(bases, client->ListBaseModels(kMostListed));
  }
  if (arguments.tuned || !arguments.base) {
    LUTHIER_ASSIGN_OR_RETURN(versions, AllVersions(*client));
  }
  if (context.ForPrograms()) {
    nlohmann::json out = {{"base_models", nlohmann::json::array()}, {"model_versions", nlohmann::json::array()}};
    for (const v1::BaseModel& base : bases) out["base_models"].push_back(MessageToJson(base));
    for (const v1::ModelVersion& version : versions) out["model_versions"].push_back(MessageToJson(version));
    context.PrintForPrograms(out);
  } else if (context.format() == OutputFormat::kName) {
    for (const v1::BaseModel& base : bases) context.out() << base.name() << "\n";
    for (const v1::ModelVersion& version : versions) context.out() << version.name() << "\n";
  } else if (bases.empty() && versions.empty()) {
    context.Say("no models; register a base model with: luthier model import NAME FOLDER");
  } else {
    context.out() << ModelTable(bases, versions, context.format() == OutputFormat::kWide, context.out_terminal());
  }
  return absl::OkStatus();
}

struct DownloadArguments {
  std::string model;
  std::string folder;
};

absl::Status Download(CommandContext& context, const DownloadArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version, client->GetModelVersion(VersionName(arguments.model)));
  const std::string model = version.name().substr(0, version.name().find("/versions/"));
  const std::string folder = arguments.folder.empty() ? ShortName(model) : arguments.folder;
  absl::Status status = DownloadFolder(*client, ToRemoteFolder(version), folder, context.ShowTransfer("downloading"));
  // PERMISSION_DENIED comes from the local folder here, not from the server.
  if (absl::IsPermissionDenied(status)) status = WithExitCode(status, ExitCode::kFailure);
  LUTHIER_RETURN_IF_ERROR(status);
  if (context.ForPrograms()) {
    nlohmann::json out = MessageToJson(version);
    out["folder"] = folder;
    context.PrintForPrograms(out);
    return absl::OkStatus();
  }
  context.Say(absl::StrCat(version.name(), ", ", KindWord(version.kind()), " for ", ShortName(version.base_model()),
                           ", ", FormatBytes(Size(version.files())), ", verified"));
  context.out() << folder << std::endl;
  return absl::OkStatus();
}

// Versions by their number: an alias, or the newest, may be another one by the time the call arrives.
absl::Status DeleteVersions(CommandContext& context, const std::vector<std::string>& names) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  for (const std::string& given : names) {
    const std::string name = VersionName(given);
    LUTHIER_RETURN_IF_ERROR(client->DeleteModelVersion(name));
    context.out() << name << std::endl;
  }
  return absl::OkStatus();
}

absl::Status DeleteBases(CommandContext& context, const std::vector<std::string>& names) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  for (const std::string& given : names) {
    const std::string name = FullName("baseModels", given);
    LUTHIER_RETURN_IF_ERROR(client->DeleteBaseModel(name));
    context.out() << name << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

void AddModelCommands(CLI::App& app, CommandContext& context) {
  CLI::App& model = context.AddNoun(app, "model", "Register base models, list and download tuned ones");

  auto import = std::make_shared<ImportArguments>();
  CLI::App& import_command = context.AddCommand(
      model, "import", "Register a base model from a folder in Hugging Face format that the server can read",
      "  luthier model import luthier-tiny examples/base/luthier-tiny\n"
      "  luthier model import llama-3.2-1b /models/Llama-3.2-1B-Instruct\n",
      [&context, import] { return Import(context, *import); });
  import_command.add_option("NAME", import->id, "Name to register it under")->required();
  import_command
      .add_option("FOLDER", import->folder,
                  "Folder on the server's machine: config.json, *.safetensors, tokenizer.json")
      ->required();

  auto list = std::make_shared<ListArguments>();
  CLI::App& list_command = context.AddCommand(model, "list", "List base models and published versions",
                                              "  luthier model list\n  luthier model list --tuned -o wide\n",
                                              [&context, list] { return List(context, *list); });
  list_command.add_flag("--base", list->base, "Only base models");
  list_command.add_flag("--tuned", list->tuned, "Only published versions");

  auto download = std::make_shared<DownloadArguments>();
  CLI::App& download_command = context.AddCommand(
      model, "download",
      "Download a published version; goes on where an earlier download broke, and verifies every file",
      "  luthier model download intents-1                   # the newest version, into ./intents-1\n"
      "  luthier model download intents-1/2 --to adapter\n",
      [&context, download] { return Download(context, *download); });
  download_command.add_option("MODEL", download->model, "Model (the name of its job), or MODEL/VERSION")->required();
  download_command.add_option("--to", download->folder, "Folder to make; default: the model's name")
      ->type_name("FOLDER");
  context.CompleteWith(download_command, ModelNames);

  auto versions = std::make_shared<std::vector<std::string>>();
  CLI::App& delete_command = context.AddCommand(
      model, "delete", "Delete published versions that no alias points to; their numbers are not given again",
      "  luthier model delete intents-1/2\n", [&context, versions] { return DeleteVersions(context, *versions); });
  delete_command.add_option("VERSION", *versions, "MODEL/NUMBER; several may be given")->required();
  context.CompleteWith(delete_command, ModelNames);

  auto bases = std::make_shared<std::vector<std::string>>();
  CLI::App& delete_base = context.AddCommand(
      model, "delete-base", "Delete base models that no job uses; what was tuned from them stays",
      "  luthier model delete-base luthier-tiny\n", [&context, bases] { return DeleteBases(context, *bases); });
  delete_base.add_option("NAME", *bases, "Name of the base model; several may be given")->required();
  context.CompleteWith(delete_base, BaseModelNames);
}

}  // namespace luthier
