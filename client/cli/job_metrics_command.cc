#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "client/lib/resumed_stream.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string job;
  bool follow = false;
};

// Columns of one width, since the lines to come are not known when the first is printed.
std::string Line(const std::string& step, const std::string& loss, const std::string& rate, const std::string& norm,
                 const std::string& speed, const std::string& rest) {
  return absl::StrFormat("%12s  %10s  %13s  %9s  %8s%s%s\n", step, loss, rate, norm, speed, rest.empty() ? "" : "  ",
                         rest);
}

std::string LineOf(const v1::StreamJobMetricsResponse& metrics) {
  if (metrics.has_evaluation()) {
    return Line(FormatCount(metrics.evaluation().step()), "", "", "", "", EvaluationText(metrics.evaluation()));
  }
  const v1::JobProgress& progress = metrics.progress();
  return Line(absl::StrCat(FormatCount(progress.step()), "/", FormatCount(progress.total_steps())),
              FormatFraction(progress.loss()), FormatFraction(progress.learning_rate()),
              FormatFraction(progress.grad_norm()), FormatCount(static_cast<int64_t>(progress.tokens_per_second())),
              "");
}

class MetricsPrinter {
 public:
  explicit MetricsPrinter(CommandContext& context) : context_(context) {}

  void Print(const v1::StreamJobMetricsResponse& metrics) {
    if (context_.ForPrograms()) {
      context_.PrintOneForPrograms(MessageToJson(metrics));
    } else {
      if (!headed_) {
        context_.out() << context_.out_terminal().Paint(
            Colour::kFaint, Line("STEP", "LOSS", "LEARNING RATE", "GRAD NORM", "TOKENS/S", "EVALUATION"));
      }
      headed_ = true;
      context_.out() << LineOf(metrics);
    }
    context_.out() << std::flush;
  }

 private:
  CommandContext& context_;
  bool headed_ = false;
};

absl::Status Follow(CommandContext& context, Client& client, const std::string& job, MetricsPrinter& printer) {
  ResumedStream stream(client, job, {},
                       {.on_interrupted = [&context](const absl::Status& why) { context.SayThatItWaits(why); }});
  context.interrupts().Handle([&stream] { stream.Stop(); });
  v1::StreamJobMetricsRequest request;
  request.set_name(job);
  const absl::Status status = stream.Run([&](grpc::ClientContext& call) {
    const auto reader = client.jobs().StreamJobMetrics(&call, request);
    v1::StreamJobMetricsResponse metrics;
    while (reader->Read(&metrics)) {
      stream.Heard();
      if (metrics.sequence() <= request.after_sequence()) continue;  // a heartbeat
      request.set_after_sequence(metrics.sequence());
      printer.Print(metrics);
    }
    return reader->Finish();
  });
  context.interrupts().Handle({});
  if (!absl::IsCancelled(status)) return status;
  return absl::CancelledError(absl::StrCat(job, " goes on without you; follow it again with: luthier job metrics ",
                                           ShortName(job), " --follow"));
}

absl::Status Metrics(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const std::string job = FullName("jobs", arguments.job);
  MetricsPrinter printer(context);
  if (arguments.follow) return Follow(context, *client, job, printer);
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> events, client->ListEvents(job, {"progress", "evaluation"}));
  for (const v1::JobEvent& event : events) {
    v1::StreamJobMetricsResponse metrics;
    metrics.set_sequence(event.sequence());
    *metrics.mutable_create_time() = event.create_time();
    if (event.has_progress()) *metrics.mutable_progress() = event.progress();
    if (event.has_evaluation()) *metrics.mutable_evaluation() = event.evaluation();
    printer.Print(metrics);
  }
  if (events.empty()) context.Say(job + " has reported no step");
  return absl::OkStatus();
}

}  // namespace

void AddJobMetricsCommand(CLI::App& job, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      job, "metrics",
      "Show loss, learning rate, gradient norm and speed of steps, four a second at most, and the evaluations",
      "  luthier job metrics intents-1\n"
      "  luthier job metrics intents-1 --follow -o json     # every report as a line of JSON\n",
      [&context, arguments] { return Metrics(context, *arguments); });
  command.add_option("JOB", arguments->job, "Name of the job")->required();
  command.add_flag("--follow", arguments->follow, "Go on until the job is over");
  context.CompleteWith(command, JobNames);
}

}  // namespace luthier
