#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/each.h"
#include "client/cli/list.h"
#include "client/cli/model_files.h"
#include "client/cli/model_names.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct ListArguments {
  bool base = false;
  bool tuned = false;
  bool watch = false;
};

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

std::string AliasText(const v1::ModelVersion& version) {
  return version.aliases().empty() ? "-" : absl::StrJoin(version.aliases(), ",");
}

// "hf://ORG/REPO@COMMIT"; "-" if nobody said where it came from.
std::string OriginText(const v1::BaseModel& model) {
  if (model.source().empty()) return "-";
  return model.revision().empty() ? model.source() : absl::StrCat(model.source(), "@", model.revision());
}

Table ModelTable(const std::vector<v1::BaseModel>& bases, const std::vector<v1::ModelVersion>& versions, bool wide) {
  std::vector<Column> columns = {{"NAME"},
                                 {"KIND"},
                                 {"ALIASES", false, true},
                                 {"BASE MODEL", false, true},
                                 {"SIZE", true},
                                 {"AGE", true, false, true}};
  if (wide) {
    for (const char* heading : {"PARAMETERS", "CONTEXT"}) columns.push_back({heading, true});
    for (const char* heading : {"JOB", "SOURCE"}) columns.push_back({heading, false, true});
  }
  Table table(columns);
  const auto age = [](const auto& message) { return FormatAge(absl::Now() - ToTime(message.create_time())); };
  for (const v1::BaseModel& base : bases) {
    std::vector<Cell> cells = {ShortName(base.name()),
                               absl::StrCat("base, ", base.model_type()),
                               "-",
                               "-",
                               FormatBytes(BytesOf(base.files())),
                               age(base)};
    if (wide) {
      for (const std::string& cell :
           {FormatCount(base.parameters()), FormatCount(base.context_length()), std::string("-"), OriginText(base)})
        cells.emplace_back(cell);
    }
    table.AddRow(std::move(cells));
  }
  for (const v1::ModelVersion& version : versions) {
    std::vector<Cell> cells = {ShortVersionName(version.name()),
                               KindWord(version.kind()),
                               AliasText(version),
                               ShortName(version.base_model()),
                               FormatBytes(BytesOf(version.files())),
                               age(version)};
    if (wide) {
      for (const std::string& cell : {std::string("-"), std::string("-"), ShortName(version.job()), std::string("-")})
        cells.emplace_back(cell);
    }
    table.AddRow(std::move(cells));
  }
  return table;
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    std::vector<v1::BaseModel> bases;
    std::vector<v1::ModelVersion> versions;
    if (arguments.base || !arguments.tuned) {
      LUTHIER_ASSIGN_OR_RETURN(bases, client->ListBaseModels(kMostListed));
    }
    if (arguments.tuned || !arguments.base) {
      LUTHIER_ASSIGN_OR_RETURN(versions, AllVersions(*client));
    }
    Listing listing = ListingOf("base_models", bases, ModelTable(bases, versions, WantsWide(context)),
                                "no models; register a base model with: luthier model import NAME FOLDER");
    const Listing tuned = ListingOf("model_versions", versions, Table(), "");
    listing.names.insert(listing.names.end(), tuned.names.begin(), tuned.names.end());
    listing.values.insert(listing.values.end(), tuned.values.begin(), tuned.values.end());
    listing.whole.update(tuned.whole);
    return listing;
  });
}

std::string FileTable(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files, const Terminal& terminal) {
  Table table({{"FILE", false, true}, {"SIZE", true}, {"SHA-256", false, true}});
  for (const v1::ModelFile& file : files) table.AddRow({file.path(), FormatBytes(file.size_bytes()), file.sha256()});
  return table.Render(terminal);
}

absl::Status GetBase(CommandContext& context, const std::string& name) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::BaseModel model, client->GetBaseModel(name));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(model));
    return absl::OkStatus();
  }
  context.out() << model.name() << "\n";
  if (context.format() == OutputFormat::kName) return absl::OkStatus();
  context.out() << FactsText(model) << "\n";
  if (!model.source().empty()) context.out() << "from " << OneLine(OriginText(model)) << "\n";
  context.out() << FileTable(model.files(), context.out_terminal());
  return absl::OkStatus();
}

absl::Status Get(CommandContext& context, const std::string& name) {
  if (absl::StartsWith(name, "baseModels/")) return GetBase(context, name);
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::ModelVersion> found = client->GetModelVersion(VersionName(name));
  if (absl::IsNotFound(found.status()) && name.find_first_of("/@") == std::string::npos) {
    // `model list` shows a base model under its short name, too.
    const absl::Status base = GetBase(context, FullName("baseModels", name));
    if (!absl::IsNotFound(base)) return base;
  }
  LUTHIER_RETURN_IF_ERROR(found.status());
  const v1::ModelVersion& version = *found;
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(version));
    return absl::OkStatus();
  }
  context.out() << version.name() << "\n";
  if (context.format() == OutputFormat::kName) return absl::OkStatus();
  context.out() << KindWord(version.kind()) << " for " << version.base_model() << ", of attempt " << version.attempt()
                << " of " << version.job() << ", " << FormatTime(version.create_time()) << "\naliases  "
                << AliasText(version) << "\n"
                << FileTable(version.files(), context.out_terminal());
  return absl::OkStatus();
}

struct DownloadArguments {
  std::string model;
  std::string folder;
};

absl::Status Download(CommandContext& context, const DownloadArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return WithBaseModelNamed(DownloadVersion(context, *client, VersionName(arguments.model), arguments.folder), *client,
                            arguments.model);
}

struct UrlsArguments {
  std::string model;
  std::string lifetime = "1h";
};

// A file a line, the URL first, so that a shell reads them also where a name has blanks: `while read -r url file`.
absl::Status Urls(CommandContext& context, const UrlsArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration lifetime, ParseDurationFlag("--for", arguments.lifetime));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::SignModelVersionUrlsResponse urls,
                           client->SignModelVersionUrls(VersionName(arguments.model), lifetime));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(urls));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    context.out() << urls.name() << std::endl;
    return absl::OkStatus();
  }
  context.Say(absl::StrCat(urls.name(), ", for whoever has them, until ", FormatTime(urls.expire_time())));
  for (const v1::SignedFile& file : urls.files()) context.out() << file.url() << " " << file.file().path() << "\n";
  context.out() << std::flush;
  return absl::OkStatus();
}

// Versions by their number: an alias, or the newest, may be another one by the time the call arrives.
absl::Status DeleteVersions(CommandContext& context, const std::vector<std::string>& names) {
  return DeleteEach(context, names, VersionName, &Client::DeleteModelVersion);
}

absl::Status DeleteBases(CommandContext& context, const std::vector<std::string>& names) {
  return DeleteEach(
      context, names, [](const std::string& id) { return FullName("baseModels", id); }, &Client::DeleteBaseModel);
}

void AddList(CLI::App& model, CommandContext& context) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& command = context.AddCommand(model, "list", "List base models and published versions",
                                         "  luthier model list\n  luthier model list --tuned -o wide\n",
                                         [&context, arguments] { return List(context, *arguments); });
  command.add_flag("--base", arguments->base, "Only base models");
  command.add_flag("--tuned", arguments->tuned, "Only published versions");
  AddWatchFlag(command, arguments->watch);
}

void AddGet(CLI::App& model, CommandContext& context) {
  auto name = std::make_shared<std::string>();
  CLI::App& command =
      context.AddCommand(model, "get", "Show a version: what made it, its aliases, its files; or a base model",
                         "  luthier model get intents-1                        # the newest version\n"
                         "  luthier model get intents/production\n"
                         "  luthier model get luthier-tiny                     # a base model\n",
                         [&context, name] { return Get(context, *name); });
  command
      .add_option("MODEL", *name,
                  "Model, MODEL/VERSION or MODEL/ALIAS; or a base model, baseModels/NAME if a model has that name, too")
      ->required();
  context.CompleteWith(command, ModelNames);
}

void AddDownload(CLI::App& model, CommandContext& context) {
  auto arguments = std::make_shared<DownloadArguments>();
  CLI::App& command = context.AddCommand(
      model, "download",
      "Download a published version; goes on where an earlier download broke, and verifies every file",
      "  luthier model download intents-1                   # the newest version, into ./intents-1\n"
      "  luthier model download intents-1/2 --to adapter\n",
      [&context, arguments] { return Download(context, *arguments); });
  command.add_option("MODEL", arguments->model, "Model (the name of its job), or MODEL/VERSION")->required();
  command.add_option("--to", arguments->folder, "Folder to make; default: the model's name")->type_name("FOLDER");
  context.CompleteWith(command, ModelNames);
}

void AddUrls(CLI::App& model, CommandContext& context) {
  auto arguments = std::make_shared<UrlsArguments>();
  CLI::App& command =
      context.AddCommand(model, "urls",
                         "Show URLs with which whoever has them gets a version's files from the bucket, without a "
                         "token, until they expire",
                         "  luthier model urls intents-1 --for 10m |\n"
                         "    while read -r url file; do curl -fsS --create-dirs -o \"$file\" \"$url\"; done\n"
                         "  luthier model urls intents/production -o json\n",
                         [&context, arguments] { return Urls(context, *arguments); });
  command.add_option("MODEL", arguments->model, "Model, MODEL/VERSION or MODEL/ALIAS")->required();
  command.add_option("--for", arguments->lifetime, "How long they work, up to 168h; nothing ends them before")
      ->type_name("DURATION")
      ->capture_default_str();
  context.CompleteWith(command, ModelNames);
}

void AddDelete(CLI::App& model, CommandContext& context) {
  auto versions = std::make_shared<std::vector<std::string>>();
  CLI::App& command = context.AddCommand(
      model, "delete", "Delete published versions that no alias points to; their numbers are not given again",
      "  luthier model delete intents-1/2\n", [&context, versions] { return DeleteVersions(context, *versions); });
  command.add_option("VERSION", *versions, "MODEL/NUMBER; several may be given")->required();
  context.AddYesFlag(command);
  context.CompleteWith(command, ModelNames);
}

void AddDeleteBase(CLI::App& model, CommandContext& context) {
  auto bases = std::make_shared<std::vector<std::string>>();
  CLI::App& command = context.AddCommand(
      model, "delete-base", "Delete base models that no job uses; what was tuned from them stays",
      "  luthier model delete-base luthier-tiny\n", [&context, bases] { return DeleteBases(context, *bases); });
  command.add_option("NAME", *bases, "Name of the base model; several may be given")->required();
  context.AddYesFlag(command);
  context.CompleteWith(command, BaseModelNames);
}

}  // namespace

void AddModelCommands(CLI::App& app, CommandContext& context) {
  CLI::App& model =
      context.AddNoun(app, "model", "Register base models; list, promote, download and export tuned ones");
  AddModelImportCommand(model, context);
  AddList(model, context);
  AddGet(model, context);
  AddModelAliasCommands(model, context);
  AddDownload(model, context);
  AddModelExportCommand(model, context);
  AddUrls(model, context);
  AddDelete(model, context);
  AddDeleteBase(model, context);
}

}  // namespace luthier
