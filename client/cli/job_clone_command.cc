// `job clone`: a job with the spec and the labels of another, but for what flags say.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_file.h"
#include "client/cli/job_flags.h"
#include "client/cli/job_line.h"
#include "client/cli/label_flag.h"
#include "client/cli/new_job.h"
#include "lib/base/status_macros.h"
#include "lib/wire/job_spec_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string original;
  JobFlagValues fields;
  NewJobFlags job;
};

// The spec of the original with the flags in it. Errors: INVALID_ARGUMENT naming field or flag; those of GetJob().
absl::StatusOr<v1::FineTuningSpec> SpecOfClone(CommandContext& context, Client& client, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob original, client.GetJob(FullName("jobs", arguments.original)));
  if (original.spec().has_model_export()) {
    return absl::InvalidArgumentError(absl::StrCat(
        original.name(), " is an export, which has none of these fields; make another one: luthier model export"));
  }
  v1::FineTuningJob job;
  *job.mutable_spec() = original.spec();
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec before, JobFromProto(job));
  LUTHIER_ASSIGN_OR_RETURN(const ChangedSpec changed,
                           SpecWithFlags(original.name(), before, {.fields = arguments.fields.fields}));
  for (const std::string& words : changed.gave_way) context.Say(words);
  LUTHIER_ASSIGN_OR_RETURN(job, JobToProto(changed.spec));
  return job.spec();
}

absl::StatusOr<v1::CloneFineTuningJobRequest> MakeRequest(CommandContext& context, Client& client,
                                                          const Arguments& arguments) {
  v1::CloneFineTuningJobRequest request;
  request.set_name(FullName("jobs", arguments.original));
  NewJobFlags flags = arguments.job;
  if (flags.settings.deadline == "none") flags.settings.deadline.clear();  // a clone has not that of the other job
  LUTHIER_RETURN_IF_ERROR(ApplyNewJobFlags(flags, request));
  google::protobuf::FieldMask& mask = *request.mutable_update_mask();
  const SettingFlags& settings = flags.settings;
  if (!settings.service_class.empty()) mask.add_paths("service_class");
  if (settings.priority) mask.add_paths("priority");
  if (!settings.retention.empty()) mask.add_paths("retention");
  if (!settings.deadline.empty()) mask.add_paths("deadline");
  if (!arguments.fields.labels.empty()) {
    LUTHIER_RETURN_IF_ERROR(SetLabels(arguments.fields.labels, *request.mutable_job()));
    mask.add_paths("labels");
  }
  if (arguments.fields.fields.empty()) return request;
  LUTHIER_ASSIGN_OR_RETURN(*request.mutable_job()->mutable_spec(), SpecOfClone(context, client, arguments));
  mask.add_paths("spec");
  return request;
}

absl::Status Clone(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, TimeoutOf(arguments.job, arguments.job.follows()));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::CloneFineTuningJobRequest request, MakeRequest(context, *client, arguments));
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job,
                           CreateOnce(context, arguments.job, HowToRepeat(request.request_id(), request.job()),
                                      [&] { return client->CloneJob(request); }));
  context.SayWarnings(job.warnings());
  if (arguments.job.dry_run || context.ForPrograms()) {
    PrintNewJob(context, job, arguments.job);
  } else {
    PrintJobLine(context, job);
  }
  if (arguments.job.dry_run) {
    context.Say("the job is valid; nothing was created");
    return absl::OkStatus();
  }
  return arguments.job.follows() ? FollowNewJob(context, job.name(), arguments.job, timeout) : absl::OkStatus();
}

}  // namespace

void AddJobCloneCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      job, "clone", "Create a job with the spec and the labels of another, but for the fields that flags give",
      "  luthier job clone intents-1 --id intents-2\n"
      "  luthier job clone intents-1 --lora.rank 32 --resources.devices 1 --watch\n"
      "  luthier job clone intents-1 --training.seed 2 --dry-run\n",
      [&context, arguments] { return Clone(context, *arguments); });
  command.add_option("JOB", arguments->original, "Name of the job to take all else from")->required();
  context.CompleteWith(command, JobNames);
  AddNewJobFlags(command,
                 {.id = "Name of the new job; chosen if not given",
                  .dry_run = "Check everything and show every value with its reason; create nothing",
                  .watch = "Show progress until the job is over",
                  .request_id = "Repeat an earlier command safely: the same id makes no second job"},
                 arguments->job);
  AddJobFlags(command, arguments->fields);
  const auto say = [&](const char* flag, const char* help) { command.get_option(flag)->description(help); };
  say("--label", "Labels in place of those of the other job; may be repeated");
  say("--class", "How urgent: interactive, standard or background; default: that of the other job");
  say("--priority", "Among the jobs of its tenant and class, -100 to 100; default: that of the other job");
  say("--retention", "How long its logs and progress are kept after it is over, such as 30d; default: as the other's");
  say("--deadline",
      "Cancel it unless it is done by then: a duration from now (6h), a time (2026-12-01T18:00:00Z) or none (default)");
}

}  // namespace luthier
