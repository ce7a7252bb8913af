// luthier job: the commands of a job that are small; the others have files of their own.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/duration_flag.h"
#include "client/cli/each.h"
#include "client/cli/job_line.h"
#include "client/cli/job_text.h"
#include "client/cli/job_watch_command.h"
#include "client/lib/job_watch.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

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

// All are cancelled before the first is waited for.
absl::Status Cancel(CommandContext& context, const CancelArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::vector<std::string> ending;
  absl::Status status = DoToEach(context, arguments.jobs, [&](const std::string& id) -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, client->CancelJob(FullName("jobs", id)));
    if (arguments.wait && !IsTerminal(job.state())) {
      context.Say(
          absl::StrCat(job.name(), " is ", v1::FineTuningJob::State_Name(job.state()), "; waiting for its end"));
      ending.push_back(job.name());
    } else {
      PrintJobLine(context, job);
    }
    return absl::OkStatus();
  });
  status.Update(DoToEach(context, ending, [&](const std::string& name) {
    const absl::Status over =
        FollowJob(context, name, WatchStyle::kQuiet, absl::InfiniteDuration(), /*to_stderr=*/true);
    const absl::StatusOr<v1::FineTuningJob> now = client->GetJob(name);
    if (now.ok()) PrintJobLine(context, *now);
    return absl::IsCancelled(over) ? now.status() : over;  // CANCELLED is what was asked for
  }));
  return status;
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

}  // namespace

void AddJobCommands(CLI::App& app, CommandContext& context) {
  CLI::App& job = context.AddNoun(app, "job", "Submit, watch and compare fine-tuning jobs");
  AddJobSubmitCommand(job, context);
  AddJobEstimateCommand(job, context);
  AddJobListCommand(job, context);
  AddGet(job, context);
  AddWatch(job, context);
  AddCancel(job, context);
  AddJobStepCommands(job, context);
  AddJobCloneCommand(job, context);
  AddJobCheckpointCommands(job, context);
  AddJobMetricsCommand(job, context);
  AddJobLogsCommand(job, context);
  AddJobCompareCommand(job, context);
}

}  // namespace luthier
