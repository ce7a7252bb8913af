// `dataset check`: the server's validation, without a server.
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/dataset_files.h"
#include "client/cli/dataset_text.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/encode.h"
#include "lib/dataset/validate.h"
#include "lib/text/chat_template.h"
#include "lib/text/json_file.h"
#include "lib/text/tokenizer.h"

namespace luthier {
namespace {

struct Arguments {
  DatasetPaths files;
  std::string model;
  int64_t max_length = 0;
  std::string loss_on = "assistant";
  std::string too_long = "refuse";
  std::string chat_template;
};

// The tokenizer and template of a model folder; the encoder refers to them.
struct Text {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::unique_ptr<RowEncoder> encoder;
};

absl::StatusOr<int64_t> ContextLength(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const OrderedJson config, ReadJsonObject(folder + "/config.json"));
  const auto found = config.find("max_position_embeddings");
  return found != config.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

absl::StatusOr<std::unique_ptr<Text>> LoadText(const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(arguments.model));
  auto text = std::make_unique<Text>(Text{std::move(tokenizer), std::nullopt, nullptr});
  LUTHIER_ASSIGN_OR_RETURN(const std::string source, TemplateSource(arguments.chat_template));
  LUTHIER_ASSIGN_OR_RETURN(text->chat_template, ChatTemplate::OfJob(arguments.model, source, /*date=*/""));
  int64_t max_length = arguments.max_length;
  if (max_length == 0) {
    LUTHIER_ASSIGN_OR_RETURN(max_length, ContextLength(arguments.model));
  }
  text->encoder = std::make_unique<RowEncoder>(text->tokenizer, text->chat_template ? &*text->chat_template : nullptr,
                                               EncodeOptionsOf(arguments.loss_on, arguments.too_long, max_length));
  return text;
}

void Print(CommandContext& context, const std::vector<PartReport>& parts) {
  if (context.ForPrograms()) {
    nlohmann::json list = nlohmann::json::array();
    for (const PartReport& part : parts) {
      nlohmann::json report = nlohmann::json::parse(ToJson(part.report).dump());
      report["part"] = part.part;
      list.push_back(std::move(report));
    }
    context.PrintForPrograms({{"parts", list}});
    return;
  }
  context.out() << ReportTable(parts, context.out_terminal());
  const std::string histogram = LengthHistogram(parts);
  if (!histogram.empty()) context.out() << "\n" << histogram;
  context.out() << RepeatedRows(parts);
  context.out() << std::flush;
}

absl::Status Check(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<DatasetFile> files, FindDatasetFiles(arguments.files));
  WarnOfRowsLeftOut(context, arguments.files);
  std::unique_ptr<Text> text;
  if (!arguments.model.empty()) {
    absl::StatusOr<std::unique_ptr<Text>> loaded = LoadText(arguments);
    if (!loaded.ok()) return absl::InvalidArgumentError(absl::StrCat("--model: ", loaded.status().message()));
    text = *std::move(loaded);
  }
  std::vector<PartReport> parts;
  ValidationReport all;
  for (const DatasetFile& file : files) {
    LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report,
                             text == nullptr ? CheckStructure(file.path, file.path)
                                             : Validate(file.path, *text->encoder, file.path, UsableCpus()));
    parts.push_back({file.part, report});
    all.Merge(report);
  }
  Print(context, parts);
  LUTHIER_RETURN_IF_ERROR(all.ToStatus());
  context.Say(text == nullptr ? "the rows are in order; --model FOLDER also checks them with its tokenizer and template"
                              : "the rows are in order");
  return absl::OkStatus();
}

}  // namespace

void AddDatasetCheckCommand(CLI::App& dataset, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      dataset, "check", "Check rows as the server will, without a server: every fault with file and line",
      "  luthier dataset check examples/tasks/classification\n"
      "  luthier dataset check train.jsonl --model examples/base/luthier-tiny     # also tokens and lengths\n"
      "  luthier dataset check train.jsonl --model FOLDER --max-length 512 --too-long truncate\n",
      [&context, arguments] { return Check(context, *arguments); });
  AddDatasetPaths(command, arguments->files);
  command.add_option("--model", arguments->model, "Model folder: counts tokens with its tokenizer and chat template")
      ->type_name("FOLDER");
  command.add_option("--max-length", arguments->max_length, "Tokens of a row at most; default: the model's context")
      ->check(CLI::Range(2, 1 << 24))
      ->type_name("N");
  command.add_option("--chat-template", arguments->chat_template, "Jinja template in place of the model's")
      ->type_name("FILE");
  command.add_option("--loss-on", arguments->loss_on, "assistant, completion or all")
      ->check(CLI::IsMember({"assistant", "completion", "all"}))
      ->type_name("NAME");
  command.add_option("--too-long", arguments->too_long, "Longer rows: refuse, truncate, keep_answer or drop")
      ->check(CLI::IsMember({"refuse", "truncate", "keep_answer", "drop"}))
      ->type_name("NAME");
}

}  // namespace luthier
