#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_file.h"
#include "client/cli/job_flags.h"
#include "client/cli/new_job.h"
#include "lib/base/status_macros.h"
#include "lib/wire/job_spec_wire.h"

namespace luthier {
namespace {

constexpr char kExamples[] =
    "  luthier job submit -f job.yaml --watch\n"
    "  luthier job submit --base-model luthier-tiny --dataset intents --task classification\n"
    "  luthier job submit -f job.yaml --lora.rank 32 --training.epochs 5 --id intents-r32\n"
    "  luthier job submit -f job.yaml --dry-run          # what every value becomes, and why\n"
    "  id=$(luthier job submit -f job.yaml -o name) && luthier job watch \"$id\"\n"
    "\n"
    "A job file, every line but the first two optional, `auto` wherever a value can be chosen:\n"
    "  base_model: luthier-tiny\n"
    "  dataset: intents\n"
    "  task: classification\n"
    "  tuning: lora\n"
    "  lora: {rank: auto, alpha: auto, target_modules: all-linear}\n"
    "  training: {epochs: auto, learning_rate: auto, batch_tokens: auto, max_length: auto, seed: 1}\n"
    "  evaluation: {every: auto, metric: exact_match}\n"
    "  labels: {team: support}\n";

struct Arguments {
  std::string file;
  JobFlagValues fields;
  NewJobFlags job;
};

absl::StatusOr<v1::CreateFineTuningJobRequest> MakeRequest(const Arguments& arguments, const JobFile& file) {
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec spec, ParseJobFile(file));
  v1::CreateFineTuningJobRequest request;
  LUTHIER_ASSIGN_OR_RETURN(*request.mutable_job(), JobToProto(spec));
  LUTHIER_RETURN_IF_ERROR(ApplyNewJobFlags(arguments.job, request));
  return request;
}

absl::Status Submit(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, TimeoutOf(arguments.job, arguments.job.follows()));
  LUTHIER_ASSIGN_OR_RETURN(const JobFile file, ReadJobWithFlags(context, arguments.file, arguments.fields));
  LUTHIER_ASSIGN_OR_RETURN(const v1::CreateFineTuningJobRequest request, MakeRequest(arguments, file));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::FineTuningJob> job =
      CreateOnce(context, arguments.job, HowToRepeat(request.request_id(), request.job()),
                 [&] { return client->CreateJob(request); });
  if (!job.ok()) return WithLines(job.status(), file);
  context.SayWarnings(job->warnings());
  PrintNewJob(context, *job, arguments.job);
  if (arguments.job.dry_run) {
    context.Say("the job is valid; nothing was created");
    return absl::OkStatus();
  }
  if (arguments.job.follows()) return FollowNewJob(context, job->name(), arguments.job, timeout);
  const std::string id = ShortName(job->name());
  context.Say(absl::StrCat("watch it with: luthier job watch ", id, "\nwhy each value: luthier job get ", id));
  return absl::OkStatus();
}

}  // namespace

void AddJobSubmitCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command =
      context.AddCommand(job, "submit", "Submit a fine-tuning job from a file, from flags, or both (flags win)",
                         kExamples, [&context, arguments] { return Submit(context, *arguments); });
  command.add_option("-f,--file", arguments->file, "Job file, YAML or JSON; - is standard input")->type_name("FILE");
  AddNewJobFlags(command,
                 {.id = "Name of the job, and of the model it publishes; chosen if not given",
                  .dry_run = "Check everything and show every value with its reason; create nothing",
                  .watch = "Show progress until the job is over",
                  .request_id = "Repeat an earlier submit safely: the same id makes no second job"},
                 arguments->job);
  AddJobFlags(command, arguments->fields);
}

}  // namespace luthier
