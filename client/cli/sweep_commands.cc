#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/exit_code.h"
#include "client/cli/job_file.h"
#include "client/cli/job_flags.h"
#include "client/cli/list.h"
#include "client/cli/new_job.h"
#include "client/cli/table.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "client/cli/yaml.h"
#include "client/lib/job_watch.h"
#include "client/lib/stop_signal.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"
#include "lib/wire/job_spec_wire.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

// How often a sweep is looked at: it has no stream of its own.
constexpr absl::Duration kLook = absl::Seconds(1);

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

// `2 QUEUED, 1 RUNNING`.
std::string Counts(const v1::Sweep& sweep) {
  const std::map<std::string, int> counts(sweep.job_counts().begin(), sweep.job_counts().end());
  return absl::StrJoin(
      counts, ", ", [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.second, " ", entry.first); });
}

std::string Values(const v1::SweepJob& job) {
  const std::map<std::string, std::string> values(job.values().begin(), job.values().end());
  return absl::StrJoin(values, ", ", absl::PairFormatter("="));
}

std::string JobsTable(const v1::Sweep& sweep, const Terminal& terminal) {
  std::set<std::string> fields;
  for (const v1::SweepJob& job : sweep.jobs()) {
    for (const auto& [field, value] : job.values()) fields.insert(field);
  }
  std::vector<Column> columns = {{"NAME", false, true}, {"STATE"}};
  for (const std::string& field : fields) columns.push_back({field, true, true});
  columns.push_back({sweep.metric(), true});
  columns.push_back({"MODEL VERSION", false, true});
  Table table(columns);
  for (const v1::SweepJob& job : sweep.jobs()) {
    const bool best = job.job() == sweep.best_job();
    const std::optional<Colour> colour = best ? std::optional(Colour::kGreen) : std::nullopt;
    std::vector<Cell> cells = {Cell(ShortName(job.job()), colour), v1::FineTuningJob::State_Name(job.state())};
    for (const std::string& field : fields) {
      const auto value = job.values().find(field);
      cells.emplace_back(value == job.values().end() ? "-" : value->second);
    }
    cells.emplace_back(job.has_metric() ? absl::StrCat(FormatFraction(job.metric()), best ? " *" : "") : "-", colour);
    cells.emplace_back(job.model_version().empty() ? "-" : job.model_version());
    table.AddRow(std::move(cells));
  }
  return table.Render(terminal);
}

void Print(CommandContext& context, const v1::Sweep& sweep) {
  if (context.ForPrograms()) return context.PrintForPrograms(MessageToJson(sweep));
  context.out() << sweep.name();
  if (context.format() != OutputFormat::kName) context.out() << "  " << Counts(sweep);
  context.out() << std::endl;
}

bool IsOver(const v1::Sweep& sweep) {
  for (const v1::SweepJob& job : sweep.jobs()) {
    if (!IsTerminal(job.state())) return false;
  }
  return true;
}

absl::Status OutcomeOf(const v1::Sweep& sweep) {
  const auto count = [&](const char* state) {
    const auto found = sweep.job_counts().find(state);
    return found == sweep.job_counts().end() ? 0 : found->second;
  };
  if (const int failed = count("FAILED"); failed > 0) {
    return WithExitCode(absl::AbortedError(absl::StrCat(failed, " of ", sweep.jobs_size(), " jobs of ", sweep.name(),
                                                        " failed; see `luthier sweep get ", ShortName(sweep.name()),
                                                        "` and `luthier job get JOB`")),
                        ExitCode::kJobFailed);
  }
  if (count("CANCELLED") > 0) return absl::CancelledError(sweep.name() + " was cancelled");
  return absl::OkStatus();
}

// What a sweep came to. With -o name the name has been printed, or was given.
void PrintOutcome(CommandContext& context, const v1::Sweep& sweep) {
  if (context.ForPrograms()) return context.PrintForPrograms(MessageToJson(sweep));
  if (context.format() != OutputFormat::kName) context.out() << JobsTable(sweep, context.out_terminal()) << std::flush;
}

// A line whenever something has changed, until every job is over; across restarts of the server.
absl::Status Follow(CommandContext& context, const std::string& name, absl::Duration timeout) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::Time deadline = SteadyNow() + timeout;
  const auto stop = std::make_shared<StopSignal>();
  context.interrupts().Handle([stop] { stop->Notify(); });
  const std::string goes_on =
      absl::StrCat(name, " goes on; watch it again with: luthier sweep watch ", ShortName(name));
  std::string shown;
  bool seen = false, away = false;
  while (true) {
    const absl::StatusOr<v1::Sweep> sweep = client->GetSweep(name);
    if (sweep.ok()) {
      seen = true;
      away = false;
      const std::string counts = Counts(*sweep);
      if (counts != shown && !context.ForPrograms()) {
        context.Say(absl::StrCat(absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()), "  ", counts));
      }
      shown = counts;
      if (IsOver(*sweep)) {
        context.interrupts().Handle({});
        PrintOutcome(context, *sweep);
        return OutcomeOf(*sweep);
      }
    } else if (!seen || !absl::IsUnavailable(sweep.status())) {
      return sweep.status();
    } else if (!std::exchange(away, true)) {
      context.Say(absl::StrCat(sweep.status().message(), "; waiting for it"));
    }
    if (stop->WaitFor(std::min(kLook, deadline - SteadyNow()))) return absl::CancelledError(goes_on);
    if (SteadyNow() >= deadline) return absl::DeadlineExceededError(goes_on);
  }
}

absl::Status Create(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, ParseDurationFlag("--timeout", arguments.creation.timeout));
  LUTHIER_ASSIGN_OR_RETURN(JobFile file, ReadJobWithFlags(context, arguments.file, arguments.fields));
  LUTHIER_ASSIGN_OR_RETURN(const v1::CreateSweepRequest request, MakeRequest(arguments, file));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const CreationFlags& flags = arguments.creation;
  if (!flags.dry_run) context.Say("request id " + request.request_id());
  const absl::StatusOr<v1::Sweep> sweep = client->CreateSweep(request);
  if (!sweep.ok()) return WithLines(sweep.status(), file);
  for (const std::string& warning : sweep->warnings()) context.Say("warning: " + OneLine(warning));
  if (flags.dry_run && !context.ForPrograms()) {
    context.out() << JobsTable(*sweep, context.out_terminal()) << std::flush;
    context.Say("the sweep is valid; nothing was created");
    return absl::OkStatus();
  }
  // Programs get one document: with --watch that of the end.
  if (flags.dry_run || !flags.watch || !context.ForPrograms()) Print(context, *sweep);
  if (flags.dry_run) return absl::OkStatus();
  if (flags.watch) return Follow(context, sweep->name(), timeout);
  context.Say(absl::StrCat(flags.hold ? "start it with: luthier sweep start " : "watch it with: luthier sweep watch ",
                           ShortName(sweep->name())));
  return absl::OkStatus();
}

absl::Status Get(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->GetSweep(FullName("sweeps", id)));
  Print(context, sweep);
  if (!context.ForPrograms() && context.format() != OutputFormat::kName)
    context.out() << "\n" << JobsTable(sweep, context.out_terminal()) << std::flush;
  return absl::OkStatus();
}

struct ListArguments {
  int limit = 50;
  bool watch = false;
};

Table SweepTable(const std::vector<v1::Sweep>& sweeps) {
  Table table({{"NAME", false, true}, {"JOBS", false, true}, {"METRIC", false, true}, {"AGE", true, false, true}});
  for (const v1::Sweep& sweep : sweeps) {
    table.AddRow(
        {ShortName(sweep.name()), Counts(sweep), sweep.metric(), FormatAge(absl::Now() - ToTime(sweep.create_time()))});
  }
  return table;
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Sweep> sweeps, client->ListSweeps(arguments.limit));
    return ListingOf("sweeps", sweeps, SweepTable(sweeps),
                     "no sweeps; create one with: luthier sweep create -f job.yaml --grid lora.rank=4,8,16");
  });
}

absl::Status Start(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->StartSweep(FullName("sweeps", id)));
  Print(context, sweep);
  return absl::OkStatus();
}

absl::Status Cancel(CommandContext& context, const std::string& id) {
  LUTHIER_RETURN_IF_ERROR(context.Confirm("cancel every job of " + FullName("sweeps", id) + " that is not over"));
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->CancelSweep(FullName("sweeps", id)));
  Print(context, sweep);
  return absl::OkStatus();
}

absl::Status Best(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::Sweep sweep, client->GetSweep(FullName("sweeps", id)));
  for (const v1::SweepJob& job : sweep.jobs()) {
    if (job.job() != sweep.best_job()) continue;
    if (context.ForPrograms()) {
      context.PrintForPrograms(MessageToJson(job));
      return absl::OkStatus();
    }
    context.out() << job.job();
    if (context.format() != OutputFormat::kName) {
      context.out() << "  " << sweep.metric() << " " << FormatFraction(job.metric()) << "  " << Values(job) << "  "
                    << job.model_version();
    }
    context.out() << std::endl;
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("no job of ", sweep.name(), " has succeeded with a value of ", sweep.metric(),
                                          "; its jobs: ", Counts(sweep)));
}

void AddCreate(CLI::App& sweep, CommandContext& context) {
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

struct WatchArguments {
  std::string sweep;
  std::string timeout;
};

absl::Status Watch(CommandContext& context, const WatchArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, ParseDurationFlag("--timeout", arguments.timeout));
  return Follow(context, FullName("sweeps", arguments.sweep), timeout);
}

void AddWatch(CLI::App& sweep, CommandContext& context) {
  auto arguments = std::make_shared<WatchArguments>();
  CLI::App& command =
      context.AddCommand(sweep, "watch", "Follow a sweep until all of its jobs are over; Ctrl-C leaves it running",
                         "  luthier sweep watch seeds\n  luthier sweep watch seeds --timeout 1h\n",
                         [&context, arguments] { return Watch(context, *arguments); });
  command.add_option("SWEEP", arguments->sweep, "Name of the sweep")->required();
  context.CompleteWith(command, SweepNames);
  command
      .add_option("--timeout", arguments->timeout,
                  "Stop watching after this long, such as 10m (exit code 8); the sweep goes on")
      ->type_name("DURATION");
}

using Action = absl::Status (*)(CommandContext& context, const std::string& id);

CLI::App& AddOfOne(CLI::App& sweep, CommandContext& context, const std::string& name, const std::string& help,
                   const std::string& examples, Action action) {
  auto id = std::make_shared<std::string>();
  CLI::App& command =
      context.AddCommand(sweep, name, help, examples, [&context, id, action] { return action(context, *id); });
  command.add_option("SWEEP", *id, "Name of the sweep")->required();
  context.CompleteWith(command, SweepNames);
  return command;
}

}  // namespace

void AddSweepCommands(CLI::App& app, CommandContext& context) {
  CLI::App& sweep = context.AddNoun(app, "sweep", "Try many values at once, as one thing");
  AddCreate(sweep, context);
  AddOfOne(sweep, context, "get", "Show the jobs of a sweep, with their values and the metric",
           "  luthier sweep get seeds\n", Get);
  AddOfOne(sweep, context, "start", "Release the jobs of a sweep that was created on hold",
           "  luthier sweep start seeds\n", Start);
  AddWatch(sweep, context);
  AddOfOne(sweep, context, "best", "Show the best job of those that have succeeded",
           "  luthier sweep best seeds\n  luthier model download $(luthier sweep best seeds -o name)\n", Best);
  context.AddYesFlag(AddOfOne(sweep, context, "cancel", "Cancel all jobs of a sweep that are not over",
                              "  luthier sweep cancel seeds\n", Cancel));
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& list = context.AddCommand(sweep, "list", "List sweeps, newest first", "  luthier sweep list\n",
                                      [&context, arguments] { return List(context, *arguments); });
  AddWatchFlag(list, arguments->watch);
  list.add_option("--limit", arguments->limit, "At most this many")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str()
      ->type_name("N");
}

}  // namespace luthier
