// `sweep create`: many jobs from one file, and the values in which they differ.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_file.h"
#include "client/cli/job_flags.h"
#include "client/cli/new_job.h"
#include "client/cli/sweep_text.h"
#include "client/cli/sweep_watch_command.h"
#include "client/cli/yaml.h"
#include "lib/base/status_macros.h"
#include "lib/wire/job_spec_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string file;
  JobFlagValues fields;
  std::vector<std::string> grid, points;
  std::string metric;
  int max_parallel = 0;
  CreationFlags creation;
};

// As the API takes it: JSON, or a word.
std::string ValueText(const nlohmann::json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// `lora.rank=4,8,16`, values as in a job file.
absl::Status AddField(const std::string& flag, v1::Sweep& sweep) {
  const size_t equals = flag.find('=');
  if (equals == std::string::npos || equals == 0)
    return absl::InvalidArgumentError(absl::StrCat("--grid: '", flag, "' is no field; give FIELD=VALUE,VALUE"));
  LUTHIER_ASSIGN_OR_RETURN(const YamlDocument values,
                           ParseYaml(absl::StrCat("[", flag.substr(equals + 1), "]"), "--grid"));
  v1::SweepField& field = *sweep.add_grid();
  field.set_field(flag.substr(0, equals));
  for (const nlohmann::json& value : values.value) field.add_values(ValueText(value));
  return absl::OkStatus();
}

// `lora.rank: 4, training.epochs: 2`.
absl::Status AddPoint(const std::string& flag, v1::Sweep& sweep) {
  LUTHIER_ASSIGN_OR_RETURN(const YamlDocument point, ParseYaml(absl::StrCat("{", flag, "}"), "--point"));
  if (!point.value.is_object() || point.value.empty())
    return absl::InvalidArgumentError(
        absl::StrCat("--point: '", flag, "' is no point; give 'FIELD: VALUE, FIELD: VALUE'"));
  v1::SweepPoint& added = *sweep.add_points();
  for (const auto& [field, value] : point.value.items()) {
    if (value.is_null())  // as YAML has it, a field that nothing follows: the job would have the default, unseen
      return absl::InvalidArgumentError(absl::StrCat("--point: ", field, " has no value; give one, or leave it out"));
    (*added.mutable_values())[field] = ValueText(value);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::CreateSweepRequest> MakeRequest(const Arguments& arguments, JobFile& file) {
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec spec, ParseJobFile(file));
  v1::CreateSweepRequest request;
  v1::Sweep& sweep = *request.mutable_sweep();
  LUTHIER_ASSIGN_OR_RETURN(*sweep.mutable_job(), JobToProto(spec));
  LUTHIER_RETURN_IF_ERROR(ApplyCreationFlags(arguments.creation, request, *sweep.mutable_job()));
  for (const std::string& field : arguments.grid) LUTHIER_RETURN_IF_ERROR(AddField(field, sweep));
  for (const std::string& point : arguments.points) LUTHIER_RETURN_IF_ERROR(AddPoint(point, sweep));
  // An error of a field that the sweep sets is not one of the line that the file has for it.
  const auto forget_line = [&](const std::string& field) {
    file.lines.erase(field);
    if (field == "tuning") file.lines.erase("lora");  // that gives way, and what is wrong is a point's
  };
  for (const v1::SweepField& field : sweep.grid()) forget_line(field.field());
  for (const v1::SweepPoint& point : sweep.points()) {
    for (const auto& [field, value] : point.values()) forget_line(field);
  }
  sweep.set_metric(arguments.metric);
  sweep.set_max_parallel(arguments.max_parallel);
  request.set_sweep_id(arguments.creation.id);
  return request;
}

absl::Status Create(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, TimeoutOf(arguments.creation, arguments.creation.watch));
  if (arguments.grid.empty() == arguments.points.empty()) {
    return absl::InvalidArgumentError(
        "give what its jobs differ in: either --grid FIELD=VALUE,VALUE for each field, or --point 'FIELD: VALUE' for "
        "each job");
  }
  LUTHIER_ASSIGN_OR_RETURN(JobFile file, ReadJobWithFlags(context, arguments.file, arguments.fields));
  LUTHIER_ASSIGN_OR_RETURN(const v1::CreateSweepRequest request, MakeRequest(arguments, file));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const CreationFlags& flags = arguments.creation;
  const absl::StatusOr<v1::Sweep> sweep =
      CreateOnce(context, flags, HowToRepeat(request.request_id(), request.sweep().job()),
                 [&] { return client->CreateSweep(request); });
  if (!sweep.ok()) return WithLines(sweep.status(), file);
  context.SayWarnings(sweep->warnings());
  if (flags.dry_run && !context.ForPrograms()) {
    context.out() << SweepJobsTable(*sweep, context.out_terminal()) << std::flush;
    context.Say("the sweep is valid; nothing was created");
    return absl::OkStatus();
  }
  // Programs get one document: with --watch that of the end.
  if (flags.dry_run || !flags.watch || !context.ForPrograms()) PrintSweepLine(context, *sweep);
  if (flags.dry_run) return absl::OkStatus();
  if (flags.watch) return FollowSweep(context, sweep->name(), timeout);
  context.Say(absl::StrCat(flags.hold ? "start it with: luthier sweep start " : "watch it with: luthier sweep watch ",
                           ShortName(sweep->name())));
  return absl::OkStatus();
}

}  // namespace

void AddSweepCreateCommand(CLI::App& sweep, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      sweep, "create", "Submit a job for each combination of values, or for each point of a list",
      "  luthier sweep create -f job.yaml --grid lora.rank=4,8,16 --grid training.learning_rate=1e-4,3e-4 --watch\n"
      "  luthier sweep create -f job.yaml --point 'lora.rank: 4, training.epochs: 4' --point 'lora.rank: 16'\n"
      "  luthier sweep create -f job.yaml --grid tuning=lora,full --id compare\n"
      "  luthier sweep create -f job.yaml --grid training.seed=1,2,3 --metric test.exact_match --id seeds\n",
      [&context, arguments] { return Create(context, *arguments); });
  command.add_option("-f,--file", arguments->file, "Job file of what they have in common; - is standard input")
      ->type_name("FILE");
  command.add_option("--grid", arguments->grid, "A field and its values, as in a job file; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FIELD=VALUE,…");
  command.add_option("--point", arguments->points, "The values of one job; may be repeated, instead of --grid")
      ->allow_extra_args(false)
      ->type_name("'FIELD: VALUE, …'");
  command
      .add_option("--metric", arguments->metric,
                  "By which the best is chosen: validation or test, a dot, and loss (default: validation.loss), "
                  "token_accuracy, exact_match, json_equality or field_f1")
      ->type_name("METRIC");
  command.add_option("--max-parallel", arguments->max_parallel, "So many of its jobs run at a time")
      ->check(CLI::Range(1, 1'000'000))
      ->type_name("N");
  AddCreationFlags(command,
                   {.id = "Name of the sweep; its jobs are ID-1, ID-2, …; chosen if not given",
                    .hold = "Create its jobs on hold: `luthier sweep start` releases them",
                    .dry_run = "Check every job; create nothing",
                    .watch = "Wait until every job is over; the exit code says how they ended",
                    .timeout = "Stop waiting after this long, such as 10m (exit code 8); the sweep goes on",
                    .request_id = "Repeat an earlier command safely: the same id makes no second sweep"},
                   arguments->creation);
  AddJobFlags(command, arguments->fields);
}

}  // namespace luthier
