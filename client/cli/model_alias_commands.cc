// Names such as `production` for versions: `model promote`, and `model alias`.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/command.h"
#include "client/cli/list.h"
#include "client/cli/model_files.h"
#include "client/cli/model_names.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Promotion {
  std::string model, alias, minimum;
};

// `exact_match=0.9`.
absl::Status ReadMinimum(const std::string& text, v1::PromotionMinimum& minimum) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  double value = 0;
  if (!absl::SimpleAtod(parts.second, &value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--minimum: '", text, "' is no bar; give METRIC=VALUE, such as exact_match=0.9"));
  }
  minimum.set_metric(parts.first);
  minimum.set_value(value);
  return absl::OkStatus();
}

absl::Status Promote(CommandContext& context, const Promotion& wanted) {
  v1::PromoteModelVersionRequest request;
  request.set_name(VersionName(wanted.model));
  request.set_alias(wanted.alias);
  if (!wanted.minimum.empty()) LUTHIER_RETURN_IF_ERROR(ReadMinimum(wanted.minimum, *request.mutable_minimum()));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::ModelVersion> version = client->PromoteModelVersion(request);
  LUTHIER_RETURN_IF_ERROR(WithBaseModelNamed(version.status(), *client, wanted.model));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(*version));
    return absl::OkStatus();
  }
  context.out() << version->name();
  if (context.format() != OutputFormat::kName) context.out() << "  " << wanted.alias;
  context.out() << std::endl;
  return absl::OkStatus();
}

struct ListArguments {
  std::string model;  // empty: all
  bool watch = false;
};

absl::StatusOr<Listing> ReadAliases(Client& client, const std::string& of_model) {
  std::vector<std::string> models;
  if (!of_model.empty()) {
    models.push_back(FullName("models", of_model));
  } else {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Model> all, client.ListModels(kMostListed));
    for (const v1::Model& model : all) models.push_back(model.name());
  }
  Listing listing{
      .whole = {{"aliases", nlohmann::json::array()}},
      .table = Table({{"MODEL", false, true}, {"ALIAS", false, true}, {"VERSION", true}, {"JOB", false, true}}),
      .nothing = "no aliases; make one with: luthier model promote MODEL/VERSION --as production"};
  for (const std::string& model : models) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::ModelVersion> versions,
                             client.ListModelVersions(model, kMostListed));
    for (const v1::ModelVersion& version : versions) {
      const std::string its_model = ModelOf(version.name());
      for (const std::string& alias : version.aliases()) {
        listing.names.push_back(absl::StrCat(its_model, "/versions/", alias));
        listing.values.push_back({{"name", listing.names.back()}, {"version", version.name()}, {"job", version.job()}});
        listing.table.AddRow({ShortName(its_model), alias, ShortName(version.name()), ShortName(version.job())});
      }
    }
  }
  listing.whole["aliases"] = listing.values;
  return listing;
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&] { return ReadAliases(*client, arguments.model); });
}

absl::Status Delete(CommandContext& context, const std::string& alias) {
  const std::string name = VersionName(alias);
  LUTHIER_RETURN_IF_ERROR(context.Confirm("remove the alias " + alias));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_RETURN_IF_ERROR(client->DeleteModelAlias(name));
  context.out() << name << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddModelAliasCommands(CLI::App& model, CommandContext& context) {
  auto wanted = std::make_shared<Promotion>();
  CLI::App& promote = context.AddCommand(
      model, "promote", "Point an alias, such as production, to a version, which can then be named by it",
      "  luthier model promote intents/3 --as production\n"
      "  luthier model promote intents --as production --minimum exact_match=0.9     # the newest, if it is good "
      "enough\n",
      [&context, wanted] { return Promote(context, *wanted); });
  promote.add_option("MODEL", wanted->model, "Model, MODEL/VERSION or MODEL/ALIAS")->required();
  promote.add_option("--as", wanted->alias, "The alias")->required()->type_name("ALIAS");
  promote
      .add_option(
          "--minimum", wanted->minimum,
          "Only if its job reached this on the test part: exact_match, json_equality, field_f1 or token_accuracy, "
          "from 0 to 1")
      ->type_name("METRIC=VALUE");
  context.CompleteWith(promote, ModelNames);

  CLI::App& alias = context.AddNoun(model, "alias", "Show and remove aliases of versions");
  auto list = std::make_shared<ListArguments>();
  CLI::App& list_command =
      context.AddCommand(alias, "list", "List aliases, of one model or of all",
                         "  luthier model alias list\n  luthier model alias list intents -o json\n",
                         [&context, list] { return List(context, *list); });
  list_command.add_option("MODEL", list->model, "Name of the model");
  AddWatchFlag(list_command, list->watch);
  context.CompleteWith(list_command, ModelNames);
  auto removed = std::make_shared<std::string>();
  CLI::App& remove = context.AddCommand(alias, "delete", "Remove an alias; the version stays",
                                        "  luthier model alias delete intents/production\n",
                                        [&context, removed] { return Delete(context, *removed); });
  remove.add_option("ALIAS", *removed, "MODEL/ALIAS")->required();
  context.AddYesFlag(remove);
  context.CompleteWith(remove, AliasNames);
}

}  // namespace luthier
