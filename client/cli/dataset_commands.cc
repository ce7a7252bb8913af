#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/dataset_files.h"
#include "client/cli/each.h"
#include "client/cli/list.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "client/cli/waiting_line.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/validate.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

void PrintDataset(CommandContext& context, const v1::Dataset& dataset) {
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(dataset));
  } else {
    context.out() << dataset.name() << std::endl;
  }
}

struct UploadArguments {
  std::string id;
  DatasetPaths files;
};

// The server checks the same again; here a fault is found before anything is sent, and named with the local file.
absl::Status CheckBeforeUpload(CommandContext& context, const std::vector<DatasetFile>& files) {
  ValidationReport all;
  std::atomic<int64_t> rows = 0;
  const WaitingLine line(context.err(), context.err_terminal(),
                         [&] { return absl::StrCat("checking  ", FormatCount(rows), " rows"); });
  for (const DatasetFile& file : files) {
    LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report,
                             CheckStructure(file.path, file.path, [&](const Row&) { ++rows; }));
    all.Merge(report);
  }
  return all.ToStatus();
}

absl::Status Upload(CommandContext& context, const UploadArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<DatasetFile> files, FindDatasetFiles(arguments.files));
  WarnOfRowsLeftOut(context, arguments.files);
  LUTHIER_RETURN_IF_ERROR(CheckBeforeUpload(context, files));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Dataset dataset,
                           UploadDataset(*client, std::string(absl::StripPrefix(arguments.id, "datasets/")), files,
                                         context.ShowTransfer("uploading")));
  for (const v1::DatasetPart& part : dataset.parts()) {
    context.Say(absl::StrCat(part.part(), ": ", FormatCount(part.rows()), " rows, ", FormatBytes(part.size_bytes())));
  }
  PrintDataset(context, dataset);
  return absl::OkStatus();
}

std::string RowsOf(const v1::Dataset& dataset, const std::string& part) {
  for (const v1::DatasetPart& candidate : dataset.parts()) {
    if (candidate.part() == part) return FormatCount(candidate.rows());
  }
  return "-";
}

Table DatasetTable(const std::vector<v1::Dataset>& datasets, bool wide) {
  std::vector<Column> columns = {{"NAME"},       {"TRAIN", true}, {"VALIDATION", true},
                                 {"TEST", true}, {"SIZE", true},  {"AGE", true, false, true}};
  if (wide) columns.push_back({"SHA-256", false, true});
  Table table(columns);
  for (const v1::Dataset& dataset : datasets) {
    int64_t bytes = 0;
    for (const v1::DatasetPart& part : dataset.parts()) bytes += part.size_bytes();
    std::vector<Cell> cells = {
        ShortName(dataset.name()), RowsOf(dataset, "train"), RowsOf(dataset, "validation"),
        RowsOf(dataset, "test"),   FormatBytes(bytes),       FormatAge(absl::Now() - ToTime(dataset.create_time()))};
    if (wide) cells.emplace_back(dataset.parts().empty() ? "-" : dataset.parts(0).sha256());
    table.AddRow(std::move(cells));
  }
  return table;
}

absl::Status List(CommandContext& context, bool watch) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Dataset> datasets, client->ListDatasets(kMostListed));
    return ListingOf("datasets", datasets, DatasetTable(datasets, WantsWide(context)),
                     "no datasets; upload one with: luthier dataset upload NAME FOLDER");
  });
}

absl::Status Get(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Dataset dataset, client->GetDataset(FullName("datasets", id)));
  if (context.ForPrograms() || context.format() == OutputFormat::kName) {
    PrintDataset(context, dataset);
    return absl::OkStatus();
  }
  Table table({{"PART"}, {"ROWS", true}, {"SIZE", true}, {"SHA-256", false, true}});
  for (const v1::DatasetPart& part : dataset.parts())
    table.AddRow({part.part(), FormatCount(part.rows()), FormatBytes(part.size_bytes()), part.sha256()});
  context.out() << dataset.name() << ", of " << FormatTime(dataset.create_time()) << "\n"
                << table.Render(context.out_terminal());
  return absl::OkStatus();
}

absl::Status Delete(CommandContext& context, const std::vector<std::string>& ids) {
  return DeleteEach(
      context, ids, [](const std::string& id) { return FullName("datasets", id); }, &Client::DeleteDataset);
}

void AddUpload(CLI::App& dataset, CommandContext& context) {
  auto arguments = std::make_shared<UploadArguments>();
  CLI::App& command = context.AddCommand(
      dataset, "upload", "Upload rows (JSON lines or Parquet) as a dataset with the parts train, validation and test",
      "  luthier dataset upload intents examples/tasks/classification\n"
      "  luthier dataset upload tickets --train rows.jsonl --validation held-out.jsonl\n"
      "  luthier dataset upload corpus train-00000-of-00001.parquet\n"
      "\n"
      "A row is a chat, a prompt with its completion, or a text; in Parquet these are columns:\n"
      "  {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, {\"role\": \"assistant\", \"content\": \"…\"}]}\n"
      "  {\"prompt\": \"…\", \"completion\": \"…\"}\n"
      "  {\"text\": \"…\"}\n",
      [&context, arguments] { return Upload(context, *arguments); });
  command.add_option("NAME", arguments->id, "Name of the dataset")->required();
  AddDatasetPaths(command, arguments->files);
}

}  // namespace

void AddDatasetCommands(CLI::App& app, CommandContext& context) {
  CLI::App& dataset = context.AddNoun(app, "dataset", "Upload, check, list and delete datasets");
  AddUpload(dataset, context);
  auto watch = std::make_shared<bool>(false);
  CLI::App& list = context.AddCommand(dataset, "list", "List datasets, newest first",
                                      "  luthier dataset list\n  luthier dataset list -o json\n",
                                      [&context, watch] { return List(context, *watch); });
  AddWatchFlag(list, *watch);
  auto id = std::make_shared<std::string>();
  CLI::App& get = context.AddCommand(dataset, "get", "Show the parts of a dataset", "  luthier dataset get tickets\n",
                                     [&context, id] { return Get(context, *id); });
  get.add_option("NAME", *id, "Name of the dataset")->required();
  context.CompleteWith(get, DatasetNames);
  AddDatasetCheckCommand(dataset, context);
  auto ids = std::make_shared<std::vector<std::string>>();
  CLI::App& remove =
      context.AddCommand(dataset, "delete", "Delete datasets that no running job uses",
                         "  luthier dataset delete tickets\n", [&context, ids] { return Delete(context, *ids); });
  remove.add_option("NAME", *ids, "Names of the datasets")->required();
  context.AddYesFlag(remove);
  context.CompleteWith(remove, DatasetNames);
}

}  // namespace luthier
