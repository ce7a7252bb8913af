#include "client/cli/job_watch_command.h"

#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"
#include "client/cli/job_text.h"
#include "client/cli/output.h"
#include "client/cli/text.h"
#include "client/cli/watch_view.h"
#include "client/lib/job_watch.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

JobWatchHandlers HandlersOf(CommandContext& context, WatchView& view, WatchStyle style) {
  JobWatchHandlers handlers;
  switch (style) {
    case WatchStyle::kView:
      handlers.on_event = [&view](const v1::JobEvent& event) { view.OnEvent(event); };
      handlers.on_interrupted = [&view](const absl::Status& why) { view.OnInterrupted(why); };
      handlers.on_resumed = [&view] { view.OnResumed(); };
      break;
    case WatchStyle::kPrograms:
      handlers.on_event = [&context](const v1::JobEvent& event) { context.PrintOneForPrograms(MessageToJson(event)); };
      [[fallthrough]];
    case WatchStyle::kQuiet:
      handlers.on_interrupted = [&context](const absl::Status& why) { context.SayThatItWaits(why); };
      break;
  }
  return handlers;
}

}  // namespace

absl::Status FollowJob(CommandContext& context, const std::string& job, WatchStyle style, absl::Duration timeout,
                       bool to_stderr) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  std::ostream& out = to_stderr ? context.err() : context.out();
  WatchView view(out, to_stderr ? context.err_terminal() : context.out_terminal());
  JobWatch::Options options;
  options.deadline = SteadyNow() + timeout;
  JobWatch watch(*client, job, options, HandlersOf(context, view, style));
  context.interrupts().Handle([&watch] { watch.Stop(); });
  const absl::StatusOr<v1::FineTuningJob> over = watch.Run();
  context.interrupts().Handle({});
  view.Finish();
  const std::string reattach = absl::StrCat("watch it again with: luthier job watch ", ShortName(job));
  if (absl::IsCancelled(over.status())) {
    // Not CANCELLED, which says that the job was.
    return WithExitCode(absl::AbortedError(absl::StrCat(job, " goes on without you; ", reattach)),
                        ExitCode::kCancelled);
  }
  if (absl::IsDeadlineExceeded(over.status())) {
    return absl::DeadlineExceededError(
        absl::StrCat(job, " is not over after ", DurationText(timeout), " and goes on; ", reattach));
  }
  LUTHIER_RETURN_IF_ERROR(over.status());
  if (style != WatchStyle::kPrograms && over->state() == v1::FineTuningJob::SUCCEEDED) context.Say(WhatCameOut(*over));
  return OutcomeOf(*over);
}

}  // namespace luthier
