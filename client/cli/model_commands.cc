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

constexpr int kMostListed = 10000;

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

Table ModelTable(const std::vector<v1::BaseModel>& bases, const std::vector<v1::ModelVersion>& versions, bool wide) {
  std::vector<Column> columns = {{"NAME", false, true},       {"KIND"},       {"ALIASES", false, true},
                                 {"BASE MODEL", false, true}, {"SIZE", true}, {"AGE", true, false, true}};
  if (wide) {
    for (const char* heading : {"PARAMETERS", "CONTEXT"}) columns.push_back({heading, true});
    columns.push_back({"JOB", false, true});
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
           {FormatCount(base.parameters()), FormatCount(base.context_length()), std::string("-")})
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
      for (const std::string& cell : {std::string("-"), std::string("-"), ShortName(version.job())})
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
  context.out() << FactsText(model) << "\n" << FileTable(model.files(), context.out_terminal());
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
  return DownloadVersion(context, *client, VersionName(arguments.model), arguments.folder);
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

}  // namespace

void AddModelCommands(CLI::App& app, CommandContext& context) {
  CLI::App& model =
      context.AddNoun(app, "model", "Register base models; list, promote, download and export tuned ones");

  AddModelImportCommand(model, context);

  auto list = std::make_shared<ListArguments>();
  CLI::App& list_command = context.AddCommand(model, "list", "List base models and published versions",
                                              "  luthier model list\n  luthier model list --tuned -o wide\n",
                                              [&context, list] { return List(context, *list); });
  list_command.add_flag("--base", list->base, "Only base models");
  list_command.add_flag("--tuned", list->tuned, "Only published versions");
  AddWatchFlag(list_command, list->watch);

  auto name = std::make_shared<std::string>();
  CLI::App& get =
      context.AddCommand(model, "get", "Show a version: what made it, its aliases, its files; or a base model",
                         "  luthier model get intents-1                        # the newest version\n"
                         "  luthier model get intents/production\n"
                         "  luthier model get luthier-tiny                     # a base model\n",
                         [&context, name] { return Get(context, *name); });
  get.add_option("MODEL", *name,
                 "Model, MODEL/VERSION or MODEL/ALIAS; or a base model, baseModels/NAME if a model has that name, too")
      ->required();
  context.CompleteWith(get, ModelNames);
  AddModelAliasCommands(model, context);

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

  AddModelExportCommand(model, context);

  auto urls = std::make_shared<UrlsArguments>();
  CLI::App& urls_command =
      context.AddCommand(model, "urls",
                         "Show URLs with which whoever has them gets a version's files from the bucket, without a "
                         "token, until they expire",
                         "  luthier model urls intents-1 --for 10m |\n"
                         "    while read -r url file; do curl -fsS --create-dirs -o \"$file\" \"$url\"; done\n"
                         "  luthier model urls intents/production -o json\n",
                         [&context, urls] { return Urls(context, *urls); });
  urls_command.add_option("MODEL", urls->model, "Model, MODEL/VERSION or MODEL/ALIAS")->required();
  urls_command.add_option("--for", urls->lifetime, "How long they work, up to 168h; nothing ends them before")
      ->type_name("DURATION")
      ->capture_default_str();
  context.CompleteWith(urls_command, ModelNames);

  auto versions = std::make_shared<std::vector<std::string>>();
  CLI::App& delete_command = context.AddCommand(
      model, "delete", "Delete published versions that no alias points to; their numbers are not given again",
      "  luthier model delete intents-1/2\n", [&context, versions] { return DeleteVersions(context, *versions); });
  delete_command.add_option("VERSION", *versions, "MODEL/NUMBER; several may be given")->required();
  context.AddYesFlag(delete_command);
  context.CompleteWith(delete_command, ModelNames);

  auto bases = std::make_shared<std::vector<std::string>>();
  CLI::App& delete_base = context.AddCommand(
      model, "delete-base", "Delete base models that no job uses; what was tuned from them stays",
      "  luthier model delete-base luthier-tiny\n", [&context, bases] { return DeleteBases(context, *bases); });
  delete_base.add_option("NAME", *bases, "Name of the base model; several may be given")->required();
  context.AddYesFlag(delete_base);
  context.CompleteWith(delete_base, BaseModelNames);
}

}  // namespace luthier
