// What users do with jobs that exist: pause, resume, start, retry, update, explain.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/each.h"
#include "client/cli/job_flags.h"
#include "client/cli/job_line.h"
#include "client/cli/label_flag.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

using Step = absl::StatusOr<v1::FineTuningJob> (Client::*)(const std::string& name);

absl::Status TakeStep(CommandContext& context, const std::vector<std::string>& jobs, Step step) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return DoToEach(context, jobs, [&](const std::string& id) -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, (client->*step)(FullName("jobs", id)));
    PrintJobLine(context, job);
    return absl::OkStatus();
  });
}

// What an update sets.
struct Changes {
  std::string job;
  std::optional<int> priority;
  std::vector<std::string> labels;
  std::string retention;
  std::string deadline;
  std::string etag;
};

absl::Status ReadChanges(const Changes& changes, v1::FineTuningJob& job, google::protobuf::FieldMask& mask) {
  if (changes.priority) {
    job.set_priority(*changes.priority);
    mask.add_paths("priority");
  }
  if (!changes.retention.empty()) {
    LUTHIER_RETURN_IF_ERROR(SetRetention(changes.retention, job));
    mask.add_paths("retention");
  }
  if (!changes.deadline.empty()) {
    if (changes.deadline != "none") LUTHIER_RETURN_IF_ERROR(SetDeadline(changes.deadline, absl::Now(), job));
    mask.add_paths("deadline");
  }
  if (!changes.labels.empty()) mask.add_paths("labels");
  return SetLabels(changes.labels, job);
}

absl::Status Update(CommandContext& context, const Changes& changes) {
  v1::UpdateFineTuningJobRequest request;
  LUTHIER_RETURN_IF_ERROR(ReadChanges(changes, *request.mutable_job(), *request.mutable_update_mask()));
  if (request.update_mask().paths().empty())
    return absl::InvalidArgumentError("nothing to change: give --priority, --label, --retention or --deadline");
  request.mutable_job()->set_name(FullName("jobs", changes.job));
  request.mutable_job()->set_etag(changes.etag);
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::FineTuningJob job, client->UpdateJob(request));
  PrintJobLine(context, job);
  return absl::OkStatus();
}

std::string InText(const google::protobuf::Timestamp& time, absl::Time now) {
  const absl::Duration in = ToTime(time) - now;
  return absl::StrCat(FormatTime(time),
                      in > absl::ZeroDuration() ? absl::StrCat(" (in ", DurationText(in), ")") : " (at any moment)");
}

absl::Status Explain(CommandContext& context, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const v1::ExplainFineTuningJobResponse explained, client->ExplainJob(FullName("jobs", id)));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(explained));
    return absl::OkStatus();
  }
  if (context.format() == OutputFormat::kName) {
    context.out() << FullName("jobs", id) << "\n";
    return absl::OkStatus();
  }
  const absl::Time now = absl::Now();
  context.out() << "jobs/" << ShortName(FullName("jobs", id)) << "  "
                << StateWord(explained.state(), context.out_terminal()) << "\n";
  const bool waits = explained.pending_code() != v1::PENDING_REASON_UNSPECIFIED;
  if (waits) context.out() << "  waits because  " << OneLine(explained.pending_reason()) << "\n";
  if (explained.has_expected_start_time()) {
    context.out() << "  before it      " << FormatCount(explained.jobs_ahead())
                  << (explained.jobs_ahead() == 1 ? " job" : " jobs") << "\n"
                  << "  starts about   " << InText(explained.expected_start_time(), now) << "\n";
  } else if (waits && explained.pending_code() != v1::PENDING_REASON_BACKOFF) {  // whose reason says when
    context.out() << "  starts         nobody can say when\n";
  }
  if (explained.has_late_start_time())
    context.out() << "  nine in ten by " << InText(explained.late_start_time(), now) << "\n";
  if (!explained.tenant_summary().empty()) {
    const std::string summary = OneLine(explained.tenant_summary());
    context.out() << "  its tenant     " << absl::StripPrefix(summary, "tenant ") << "\n";
  }
  context.out() << std::flush;
  return absl::OkStatus();
}

void AddStep(CLI::App& job, CommandContext& context, const std::string& name, const std::string& help, Step step) {
  auto jobs = std::make_shared<std::vector<std::string>>();
  CLI::App& command = context.AddCommand(job, name, help, absl::StrCat("  luthier job ", name, " intents-1\n"),
                                         [&context, jobs, step] { return TakeStep(context, *jobs, step); });
  command.add_option("JOB", *jobs, "Names of the jobs")->required();
  context.CompleteWith(command, JobNames);
}

void AddChanges(CLI::App& command, CommandContext& context, Changes& changes) {
  command.add_option("JOB", changes.job, "Name of the job")->required();
  command
      .add_option("--priority", changes.priority,
                  "Among the jobs of its tenant and class; a point is worth an hour of waiting")
      ->check(CLI::Range(-100, 100))
      ->type_name("N");
  command.add_option("--label", changes.labels, "Labels in place of those it has; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command
      .add_option("--retention", changes.retention,
                  "How long its logs and progress are kept after it is over, such as 30d")
      ->type_name("DURATION");
  command
      .add_option(
          "--deadline", changes.deadline,
          "Cancel it unless it is done by then: a duration from now (6h), a time (2026-12-01T18:00:00Z) or none")
      ->type_name("WHEN");
  context.CompleteWith(command, JobNames);
}

}  // namespace

void AddJobStepCommands(CLI::App& job, CommandContext& context) {
  AddStep(job, context, "pause", "Stop jobs with a checkpoint until they are resumed", &Client::PauseJob);
  AddStep(job, context, "resume", "Let paused jobs go on from where they stopped", &Client::ResumeJob);
  AddStep(job, context, "start", "Release jobs that were created on hold", &Client::StartJob);
  AddStep(job, context, "retry",
          "Try jobs again that failed (from their last checkpoint, which nodes keep for a day) or were cancelled (from "
          "the start)",
          &Client::RetryJob);

  auto id = std::make_shared<std::string>();
  CLI::App& explain =
      context.AddCommand(job, "explain", "Say why a job waits, what is before it, and when it is expected to start",
                         "  luthier job explain intents-1\n", [&context, id] { return Explain(context, *id); });
  explain.add_option("JOB", *id, "Name of the job")->required();
  context.CompleteWith(explain, JobNames);

  auto update = std::make_shared<Changes>();
  CLI::App& update_command = context.AddCommand(
      job, "update", "Change priority, labels, retention or deadline of a job",
      "  luthier job update intents-1 --priority 5\n", [&context, update] { return Update(context, *update); });
  AddChanges(update_command, context, *update);
  update_command
      .add_option("--etag", update->etag,
                  "Only if nobody has changed the job since it had this etag (`luthier job get JOB -o json` shows it)")
      ->type_name("ETAG");
}

}  // namespace luthier
