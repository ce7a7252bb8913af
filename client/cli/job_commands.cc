#include <algorithm>
#include <functional>
#include <map>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/comparison.h"
#include "client/cli/duration_flag.h"
#include "client/cli/each.h"
#include "client/cli/exit_code.h"
#include "client/cli/job_text.h"
#include "client/cli/job_watch_command.h"
#include "client/cli/list.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "client/lib/job_watch.h"
#include "client/lib/resumed_stream.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct ListArguments {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  std::string since;
  std::string filter;
  bool oldest_first = false;
  int limit = 50;
  bool watch = false;
};

absl::StatusOr<std::vector<v1::FineTuningJob::State>> ParseStates(const std::vector<std::string>& words) {
  std::vector<v1::FineTuningJob::State> states;
  for (const std::string& word : words) {
    v1::FineTuningJob::State state;
    if (!v1::FineTuningJob::State_Parse(absl::AsciiStrToUpper(word), &state) ||
        state == v1::FineTuningJob::STATE_UNSPECIFIED) {
      std::vector<std::string> known;
      for (int i = v1::FineTuningJob::State_MIN + 1; i <= v1::FineTuningJob::State_MAX; ++i) {
        known.push_back(absl::AsciiStrToLower(v1::FineTuningJob::State_Name(static_cast<v1::FineTuningJob::State>(i))));
      }
      return absl::InvalidArgumentError(
          absl::StrCat("--state: '", word, "' is no state; give one of: ", absl::StrJoin(known, ", ")));
    }
    states.push_back(state);
  }
  return states;
}

// Text as a filter takes it, whatever is in it.
std::string Quoted(const std::string& text) {
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\"", "\\\""}}), "\"");
}

// The filter of the API: what the flags say, joined.
absl::StatusOr<std::string> FilterOf(const ListArguments& arguments) {
  std::vector<std::string> comparisons;
  if (!arguments.filter.empty()) comparisons.push_back(arguments.filter);
  for (const std::string& label : arguments.labels) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(label, absl::MaxSplits('=', 1));
    const std::string key = absl::StrCat("labels.", Quoted(pair.first));
    comparisons.push_back(absl::StrContains(label, '=') ? absl::StrCat(key, " = ", Quoted(pair.second))
                                                        : absl::StrCat(key, ":*"));
  }
  if (!arguments.since.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const absl::Duration since, ParseDurationFlag("--since", arguments.since));
    comparisons.push_back(
        absl::StrCat("create_time >= ", absl::FormatTime(absl::RFC3339_sec, absl::Now() - since, absl::UTCTimeZone())));
  }
  return absl::StrJoin(comparisons, " AND ");
}

absl::Status List(CommandContext& context, const ListArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const auto states, ParseStates(arguments.states));
  v1::ListFineTuningJobsRequest request;
  for (const v1::FineTuningJob::State state : states) request.add_states(state);
  LUTHIER_ASSIGN_OR_RETURN(*request.mutable_filter(), FilterOf(arguments));
  if (arguments.oldest_first) request.set_order_by("create_time");
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, arguments.watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::FineTuningJob> jobs, client->ListJobs(request, arguments.limit));
    Listing listing = ListingOf("jobs", jobs, JobTable(jobs, WantsWide(context), absl::Now()),
                                states.empty() && request.filter().empty()
                                    ? "no jobs; submit one with: luthier job submit -f job.yaml"
                                    : "no job is like that");
    if (static_cast<int>(jobs.size()) == arguments.limit) listing.note = "more jobs may exist; --limit N shows them";
    return listing;
  });
}

absl::Status Get(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, client->GetJob(FullName("jobs", id)));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(job));
  } else if (context.format() == OutputFormat::kName) {
    context.out() << job.name() << "\n";
  } else {
    context.out() << JobDescription(job, absl::Now(), context.out_terminal());
  }
  return absl::OkStatus();
}

struct WatchArguments {
  std::string job;
  std::string timeout;
};

absl::Status Watch(CommandContext& context, const WatchArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, ParseDurationFlag("--timeout", arguments.timeout));
  const WatchStyle style = context.ForPrograms() ? WatchStyle::kPrograms : WatchStyle::kView;
  return FollowJob(context, FullName("jobs", arguments.job), style, timeout, /*to_stderr=*/false);
}

struct CancelArguments {
  std::vector<std::string> jobs;
  bool wait = false;
};

void PrintCancelled(CommandContext& context, const v1::FineTuningJob& job) {
  if (context.ForPrograms()) return context.PrintForPrograms(MessageToJson(job));
  context.out() << job.name();
  if (context.format() != OutputFormat::kName) context.out() << "  " << StateWord(job.state(), context.out_terminal());
  context.out() << std::endl;
}

// All are cancelled before the first is waited for.
absl::Status Cancel(CommandContext& context, const CancelArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::vector<std::string> cancelled;
  absl::Status status = DoToEach(context, arguments.jobs, [&](const std::string& id) -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, client->CancelJob(FullName("jobs", id)));
    PrintCancelled(context, job);
    cancelled.push_back(job.name());
    return absl::OkStatus();
  });
  if (!arguments.wait) return status;
  status.Update(DoToEach(context, cancelled, [&](const std::string& name) {
    const absl::Status over =
        FollowJob(context, name, WatchStyle::kQuiet, absl::InfiniteDuration(), /*to_stderr=*/true);
    return absl::IsCancelled(over) ? absl::OkStatus() : over;  // CANCELLED is what was asked for
  }));
  return status;
}

struct LogsArguments {
  std::string job;
  bool follow = false;
  int lines = 0;  // at the end; 0: all, and changes of state
};

std::string LogLine(CommandContext& context, const google::protobuf::Timestamp& time, int attempt,
                    const std::string& text) {
  const std::string clock = absl::FormatTime("%Y-%m-%d %H:%M:%S", ToTime(time), absl::LocalTimeZone());
  return absl::StrCat(context.out_terminal().Paint(Colour::kFaint, clock), " [", attempt, "] ", OneLine(text), "\n");
}

// What is said when the connection breaks under `--follow`.
std::function<void(const absl::Status&)> SaysThatItWaits(CommandContext& context) {
  return [&context](const absl::Status& why) { context.Say(absl::StrCat(why.message(), "; waiting for it")); };
}

// Ctrl-C has ended the logs and not the job.
absl::Status EndOfLogs(const absl::Status& status, const std::string& job) {
  if (!absl::IsCancelled(status)) return status;
  return absl::CancelledError(
      absl::StrCat(job, " goes on without you; follow it again with: luthier job logs ", ShortName(job), " --follow"));
}

// The last lines only, which the server finds without reading the others.
absl::Status TailLogs(CommandContext& context, Client& client, const std::string& job, const LogsArguments& arguments) {
  v1::TailJobLogsRequest request;
  request.set_name(job);
  request.set_lines(arguments.lines);
  request.set_follow(arguments.follow);
  ResumedStream stream(client, job, {}, {.on_interrupted = SaysThatItWaits(context)});
  context.interrupts().Handle([&stream] { stream.Stop(); });
  bool any = false;
  const absl::Status status = stream.Run([&](grpc::ClientContext& call) {
    const auto reader = client.jobs().TailJobLogs(&call, request);
    v1::TailJobLogsResponse message;
    while (reader->Read(&message)) {
      stream.Heard();
      if (message.sequence() <= request.after_sequence()) continue;  // a heartbeat
      request.set_after_sequence(message.sequence());
      any = true;
      if (context.ForPrograms()) {
        context.PrintOneForPrograms(MessageToJson(message));
      } else {
        context.out() << LogLine(context, message.create_time(), message.attempt(), message.line()) << std::flush;
      }
    }
    return reader->Finish();
  });
  context.interrupts().Handle({});
  if (status.ok() && !any)
    context.Say(absl::StrCat("the trainer of ", job,
                             " has written nothing; its changes of state are in: luthier job logs ", ShortName(job)));
  return EndOfLogs(status, job);
}

void PrintLog(CommandContext& context, const v1::JobEvent& event) {
  if (event.type() != "log" && event.type() != "state" && event.type() != "warning" && event.type() != "failed") return;
  if (context.ForPrograms()) return context.PrintOneForPrograms(MessageToJson(event));
  const std::string heading = event.type() == "log" ? "" : absl::StrCat(event.type(), ": ");
  const std::string state = event.type() == "state" ? v1::FineTuningJob::State_Name(event.state()) + " " : "";
  context.out() << LogLine(context, event.create_time(), event.attempt(),
                           absl::StrCat(heading, state, event.message()));
}

absl::Status Logs(CommandContext& context, const LogsArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const std::string job = FullName("jobs", arguments.job);
  if (arguments.lines > 0) return TailLogs(context, *client, job, arguments);
  if (arguments.follow) {
    JobWatchHandlers handlers;
    handlers.on_event = [&](const v1::JobEvent& event) {
      PrintLog(context, event);
      context.out() << std::flush;
    };
    handlers.on_interrupted = SaysThatItWaits(context);
    JobWatch watch(*client, job, {}, std::move(handlers));
    context.interrupts().Handle([&watch] { watch.Stop(); });
    const absl::Status status = watch.Run().status();
    context.interrupts().Handle({});
    return EndOfLogs(status, job);
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> events,
                           client->ListEvents(job, {"log", "state", "warning", "failed"}));
  for (const v1::JobEvent& event : events) PrintLog(context, event);
  return absl::OkStatus();
}

struct CompareArguments {
  std::vector<std::string> jobs;
  int examples = 3;
};

absl::Status Compare(CommandContext& context, const CompareArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::vector<v1::FineTuningJob> jobs;
  std::map<std::string, int64_t> base_parameters;
  for (const std::string& id : arguments.jobs) {
    LUTHIER_ASSIGN_OR_RETURN(jobs.emplace_back(), client->GetJob(FullName("jobs", id)));
    if (const v1::FineTuningSpec& spec = jobs.back().spec(); spec.has_model_export()) {
      return absl::FailedPreconditionError(absl::StrCat(
          jobs.back().name(), " is an export, which trains and evaluates nothing; compare the job that made ",
          spec.model_export().model_version(), " (`luthier model get` names it)"));
    }
    const std::string base = FullName("baseModels", jobs.back().spec().base_model());
    // Only for the percentage.
    if (const auto model = client->GetBaseModel(base); model.ok()) base_parameters[base] = model->parameters();
  }
  if (context.ForPrograms()) {
    context.PrintForPrograms(ComparisonJson(jobs));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    for (const v1::FineTuningJob& job : jobs) context.out() << job.name() << "\n";
    return absl::OkStatus();
  }
  for (const v1::FineTuningJob& job : jobs) {
    if (job.state() != v1::FineTuningJob::SUCCEEDED) {
      context.Say(absl::StrCat(job.name(), " is ", v1::FineTuningJob::State_Name(job.state()),
                               "; figures are there once it has succeeded"));
    } else if (std::none_of(job.evaluations().begin(), job.evaluations().end(),
                            [](const auto& e) { return e.split() == "test"; })) {
      context.Say(absl::StrCat(job.name(), " has no held-out rows; give its dataset a test part to compare on"));
    }
  }
  const bool any = std::any_of(jobs.begin(), jobs.end(), [](const v1::FineTuningJob& job) {
    return job.has_summary() || job.evaluations_size() > 0;
  });
  if (!any) return absl::FailedPreconditionError("nothing to compare: no figures are there");
  context.out() << ComparisonTable(jobs, base_parameters, context.out_terminal());
  const std::string examples = ComparisonExamples(jobs, arguments.examples, context.out_terminal());
  if (!examples.empty()) context.out() << "\nHeld-out rows, before and after\n" << examples;
  return absl::OkStatus();
}

void AddList(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App& command = context.AddCommand(job, "list", "List jobs, newest first",
                                         "  luthier job list\n"
                                         "  luthier job list --state queued,running -o wide\n"
                                         "  luthier job list --label team=support --since 24h\n"
                                         "  luthier job list --filter 'base_model = luthier-tiny AND end_time < "
                                         "2026-11-25T08:00:00Z'\n"
                                         "  luthier job list --state running --watch\n"
                                         "  luthier job list -o json\n",
                                         [&context, arguments] { return List(context, *arguments); });
  command.add_option("--state", arguments->states, "Only jobs in these states")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("STATE");
  command.add_option("--label", arguments->labels, "Only jobs with this label; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY[=VALUE]");
  command.add_option("--since", arguments->since, "Only jobs created within this time, such as 24h or 7d")
      ->type_name("DURATION");
  command
      .add_option("--filter", arguments->filter,
                  "Only jobs like this: comparisons of state, base_model, model, tenant, create_time, end_time or "
                  "labels.KEY, joined by AND")
      ->type_name("FILTER");
  command.add_flag("--oldest-first", arguments->oldest_first, "In the order of creation");
  command.add_option("--limit", arguments->limit, "At most this many")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str()
      ->type_name("N");
  AddWatchFlag(command, arguments->watch);
}

void AddGet(CLI::App& job, CommandContext& context) {
  auto id = std::make_shared<std::string>();
  CLI::App& command = context.AddCommand(
      job, "get", "Show a job: state, why it waits, every value with its reason, evaluations, result or failure",
      "  luthier job get intents-1\n  luthier job get intents-1 -o json\n",
      [&context, id] { return Get(context, *id); });
  command.add_option("JOB", *id, "Name of the job")->required();
  context.CompleteWith(command, JobNames);
}

void AddWatch(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<WatchArguments>();
  CLI::App& command = context.AddCommand(
      job, "watch", "Follow a job to its end; Ctrl-C leaves it running. The exit code says how it ended",
      "  luthier job watch intents-1\n"
      "  luthier job watch intents-1 -o json       # every event as a line of JSON\n"
      "  luthier job watch intents-1 --timeout 1h\n",
      [&context, arguments] { return Watch(context, *arguments); });
  command.add_option("JOB", arguments->job, "Name of the job")->required();
  command
      .add_option("--timeout", arguments->timeout,
                  "Stop watching after this long, such as 10m (exit code 8); the job goes on")
      ->type_name("DURATION");
  context.CompleteWith(command, JobNames);
}

void AddCancel(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<CancelArguments>();
  CLI::App& command = context.AddCommand(job, "cancel", "Cancel jobs",
                                         "  luthier job cancel intents-1\n"
                                         "  luthier job cancel intents-1 intents-2 --wait\n",
                                         [&context, arguments] { return Cancel(context, *arguments); });
  command.add_option("JOB", arguments->jobs, "Names of the jobs")->required();
  command.add_flag("--wait", arguments->wait, "Wait until no process of them is left");
  context.CompleteWith(command, JobNames);
}

void AddLogs(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<LogsArguments>();
  CLI::App& command =
      context.AddCommand(job, "logs", "Show what the trainer wrote, with the attempt in brackets, and changes of state",
                         "  luthier job logs intents-1\n"
                         "  luthier job logs intents-1 --lines 20 --follow\n",
                         [&context, arguments] { return Logs(context, *arguments); });
  command.add_option("JOB", arguments->job, "Name of the job")->required();
  command.add_flag("--follow", arguments->follow, "Go on until the job is over");
  command
      .add_option("--lines", arguments->lines, "The last so many lines of the trainer only, without changes of state")
      ->check(CLI::Range(1, 10'000))
      ->type_name("N");
  context.CompleteWith(command, JobNames);
}

void AddCompare(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<CompareArguments>();
  CLI::App& command =
      context.AddCommand(job, "compare", "Compare base and tuned model on held-out rows, and jobs with one another",
                         "  luthier job compare intents-lora\n"
                         "  luthier job compare intents-lora intents-full       # LoRA beside full training\n",
                         [&context, arguments] { return Compare(context, *arguments); });
  command.add_option("JOB", arguments->jobs, "Names of the jobs")->required();
  command.add_option("--examples", arguments->examples, "Rows to show with their answers")
      ->check(CLI::Range(0, 100))
      ->capture_default_str()
      ->type_name("N");
  context.CompleteWith(command, JobNames);
}

}  // namespace

void AddJobCommands(CLI::App& app, CommandContext& context) {
  CLI::App& job = context.AddNoun(app, "job", "Submit, watch and compare fine-tuning jobs");
  AddJobSubmitCommand(job, context);
  AddJobEstimateCommand(job, context);
  AddList(job, context);
  AddGet(job, context);
  AddWatch(job, context);
  AddCancel(job, context);
  AddJobStepCommands(job, context);
  AddJobCheckpointCommands(job, context);
  AddJobMetricsCommand(job, context);
  AddLogs(job, context);
  AddCompare(job, context);
}

}  // namespace luthier
