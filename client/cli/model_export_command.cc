#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_flags.h"
#include "client/cli/job_text.h"
#include "client/cli/job_watch_command.h"
#include "client/cli/model_files.h"
#include "client/cli/model_names.h"
#include "client/cli/output.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string model;
  std::string format;
  std::string output_model;
  std::string folder;  // to download into; empty: nowhere
  std::string id;
  std::string request_id;
  SettingFlags settings;
  bool hold = false;
  bool dry_run = false;
  bool watch = false;
  bool wait = false;
  std::string timeout;

  bool downloads() const { return !folder.empty(); }
};

const std::map<std::string, v1::ModelExport::Format>& Formats() {
  static const auto* formats = new std::map<std::string, v1::ModelExport::Format>{
      {"merged", v1::ModelExport::MERGED}, {"gguf", v1::ModelExport::GGUF_ADAPTER}};
  return *formats;
}

absl::StatusOr<v1::ExportModelVersionRequest> MakeRequest(const Arguments& arguments) {
  v1::ExportModelVersionRequest request;
  request.set_name(VersionName(arguments.model));
  request.set_format(Formats().at(arguments.format));
  request.set_output_model(arguments.output_model);
  request.set_job_id(arguments.id);
  request.set_request_id(arguments.request_id.empty() ? RandomRequestId() : arguments.request_id);
  request.set_validate_only(arguments.dry_run);
  request.set_hold(arguments.hold);
  LUTHIER_RETURN_IF_ERROR(ApplySettingFlags(arguments.settings, *request.mutable_job()));
  return request;
}

void PrintJob(CommandContext& context, const v1::FineTuningJob& job, const Arguments& arguments) {
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(job));
  } else if (arguments.dry_run) {
    context.out() << ResolvedTable(job, context.out_terminal());
  } else {
    context.out() << job.name() << std::endl;
  }
}

absl::Status DownloadResult(CommandContext& context, Client& client, const std::string& job,
                            const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob done, client.GetJob(job));
  return DownloadVersion(context, client, done.model_version(), folder);
}

absl::Status Export(CommandContext& context, const Arguments& arguments) {
  if (arguments.downloads() && (arguments.hold || arguments.dry_run)) {
    return absl::InvalidArgumentError("--to: there is nothing to download with --hold or --dry-run; leave it out");
  }
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, ParseDurationFlag("--timeout", arguments.timeout));
  LUTHIER_ASSIGN_OR_RETURN(const v1::ExportModelVersionRequest request, MakeRequest(arguments));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  // Printed before the call: after a break the same id makes sure that there is one job.
  if (!arguments.dry_run) context.Say("request id " + request.request_id());
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, client->ExportModelVersion(request));
  if (arguments.downloads()) {
    context.Say(job.name());  // the result is the folder
  } else {
    PrintJob(context, job, arguments);
  }
  if (arguments.dry_run) {
    context.Say("the export is valid; nothing was created");
    return absl::OkStatus();
  }
  if (!arguments.watch && !arguments.wait && !arguments.downloads()) {
    context.Say(absl::StrCat("watch it with: luthier job watch ", ShortName(job.name()),
                             "\nthen: luthier model download ", job.spec().output_model()));
    return absl::OkStatus();
  }
  const WatchStyle style = arguments.watch ? WatchStyle::kView : WatchStyle::kQuiet;
  LUTHIER_RETURN_IF_ERROR(FollowJob(context, job.name(), style, timeout, /*to_stderr=*/true));
  return arguments.downloads() ? DownloadResult(context, *client, job.name(), arguments.folder) : absl::OkStatus();
}

}  // namespace

void AddModelExportCommand(CLI::App& model, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      model, "export", "Have a published adapter merged into its base model, or written for llama.cpp, on a node",
      "  luthier model export intents-1 --format merged --wait       # publishes intents-1-merged\n"
      "  luthier model export intents/production --format gguf --to intents-gguf\n"
      "  luthier model export intents/2 --format merged --output-model support --class background\n",
      [&context, arguments] { return Export(context, *arguments); });
  command.add_option("MODEL", arguments->model, "Model, MODEL/VERSION or MODEL/ALIAS")->required();
  command
      .add_option("--format", arguments->format,
                  "merged: a whole model in Hugging Face format; gguf: an adapter for llama.cpp")
      ->required()
      ->check(CLI::IsMember({"merged", "gguf"}))
      ->type_name("FORMAT");
  command
      .add_option("--output-model", arguments->output_model,
                  "Model to publish under; default: the model's name with -merged or -gguf")
      ->type_name("NAME");
  command.add_option("--to", arguments->folder, "Wait until it is done, and download it into a new folder")
      ->type_name("FOLDER");
  command.add_option("--id", arguments->id, "Name of the job; chosen if not given")->type_name("ID");
  AddSettingFlags(command, arguments->settings);
  command.add_flag("--hold", arguments->hold, "Create it on hold: `luthier job start` releases it");
  command.add_flag("--dry-run", arguments->dry_run, "Check everything and create nothing");
  command.add_flag("-w,--watch", arguments->watch, "Show what happens until the job is over");
  command.add_flag("--wait", arguments->wait, "Wait silently until the job is over; the exit code says how it ended");
  command
      .add_option("--timeout", arguments->timeout,
                  "Stop waiting after this long, such as 10m (exit code 8); the job goes on")
      ->type_name("DURATION");
  command
      .add_option("--request-id", arguments->request_id,
                  "Repeat an earlier export safely: the same id makes no second job")
      ->type_name("UUID");
  context.CompleteWith(command, ModelNames);
}

}  // namespace luthier
