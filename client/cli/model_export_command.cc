#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_watch_command.h"
#include "client/cli/model_files.h"
#include "client/cli/model_names.h"
#include "client/cli/new_job.h"
#include "client/cli/output.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

struct Arguments {
  std::string model;
  std::string format;
  std::string output_model;
  std::string folder;  // to download into; empty: nowhere
  NewJobFlags job;

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
  LUTHIER_RETURN_IF_ERROR(ApplyNewJobFlags(arguments.job, request));
  return request;
}

// Before a job is made whose result has no place. A request that is repeated may have filled it.
absl::Status CheckFolder(const Arguments& arguments) {
  std::error_code hidden;  // below a folder that may not be read: what makes the folder says why
  if (!arguments.downloads() || !arguments.job.request_id.empty() || !std::filesystem::exists(arguments.folder, hidden))
    return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("--to: ", arguments.folder,
                   " exists; give another folder, or remove it. A version that was exported before is downloaded with: "
                   "luthier model download"));
}

absl::Status DownloadResult(CommandContext& context, Client& client, const std::string& job,
                            const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob done, client.GetJob(job));
  return DownloadVersion(context, client, done.model_version(), folder);
}

absl::Status Export(CommandContext& context, const Arguments& arguments) {
  if (arguments.downloads() && (arguments.job.hold || arguments.job.dry_run)) {
    return absl::InvalidArgumentError("--to: there is nothing to download with --hold or --dry-run; leave it out");
  }
  LUTHIER_RETURN_IF_ERROR(CheckFolder(arguments));
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout,
                           TimeoutOf(arguments.job, arguments.job.follows() || arguments.downloads()));
  LUTHIER_ASSIGN_OR_RETURN(const v1::ExportModelVersionRequest request, MakeRequest(arguments));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::FineTuningJob> job =
      CreateOnce(context, arguments.job, HowToRepeat(request.request_id(), request.job()),
                 [&] { return client->ExportModelVersion(request); });
  LUTHIER_RETURN_IF_ERROR(WithBaseModelNamed(job.status(), *client, arguments.model));
  if (arguments.downloads()) {
    context.Say(job->name());  // the result is the folder
  } else {
    PrintNewJob(context, *job, arguments.job);
  }
  if (arguments.job.dry_run) {
    context.Say("the export is valid; nothing was created");
    return absl::OkStatus();
  }
  if (arguments.downloads()) {
    LUTHIER_RETURN_IF_ERROR(FollowJob(context, job->name(), arguments.job.style(), timeout, /*to_stderr=*/true));
    return DownloadResult(context, *client, job->name(), arguments.folder);
  }
  if (arguments.job.follows()) return FollowNewJob(context, job->name(), arguments.job, timeout);
  context.Say(absl::StrCat("watch it with: luthier job watch ", ShortName(job->name()),
                           "\nthen: luthier model download ", job->spec().output_model()));
  return absl::OkStatus();
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
  AddNewJobFlags(command,
                 {.id = "Name of the job; chosen if not given",
                  .dry_run = "Check everything and create nothing",
                  .watch = "Show what happens until the job is over",
                  .request_id = "Repeat an earlier export safely: the same id makes no second job"},
                 arguments->job);
  context.CompleteWith(command, ModelNames);
}

}  // namespace luthier
