// luthier job logs: what the trainer wrote, read or followed.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cli/command.h"
#include "client/cli/text.h"
#include "client/lib/job_watch.h"
#include "client/lib/resumed_stream.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

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
  ResumedStream stream(client, job, {},
                       {.on_interrupted = [&context](const absl::Status& why) { context.SayThatItWaits(why); }});
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
    handlers.on_interrupted = [&context](const absl::Status& why) { context.SayThatItWaits(why); };
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

}  // namespace

void AddJobLogsCommand(CLI::App& job, CommandContext& context) {
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

}  // namespace luthier
