#include "client/cli/sweep_watch_command.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/duration_flag.h"
#include "client/cli/exit_code.h"
#include "client/cli/sweep_text.h"
#include "client/lib/job_watch.h"
#include "client/lib/stop_signal.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

// How often a sweep is looked at: it has no stream of its own.
constexpr absl::Duration kLook = absl::Seconds(1);

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
  if (context.format() != OutputFormat::kName)
    context.out() << SweepJobsTable(sweep, context.out_terminal()) << std::flush;
}

struct WatchArguments {
  std::string sweep;
  std::string timeout;
};

absl::Status Watch(CommandContext& context, const WatchArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration timeout, ParseDurationFlag("--timeout", arguments.timeout));
  return FollowSweep(context, FullName("sweeps", arguments.sweep), timeout);
}

}  // namespace

absl::Status FollowSweep(CommandContext& context, const std::string& name, absl::Duration timeout) {
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
      const std::string counts = SweepJobCounts(*sweep);
      if (counts != shown && !context.ForPrograms()) {
        context.Say(absl::StrCat(absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()), "  ", counts));
      }
      shown = counts;
      if (IsOver(*sweep)) {
        context.interrupts().Handle({});
        PrintOutcome(context, *sweep);
        return OutcomeOf(*sweep);
      }
    } else if (!seen || !(absl::IsUnavailable(sweep.status()) || absl::IsDeadlineExceeded(sweep.status()))) {
      return sweep.status();
    } else if (!std::exchange(away, true)) {
      context.SayThatItWaits(sweep.status());
    }
    if (stop->WaitFor(std::min(kLook, deadline - SteadyNow()))) return absl::CancelledError(goes_on);
    if (SteadyNow() >= deadline) return absl::DeadlineExceededError(goes_on);
  }
}

void AddSweepWatchCommand(CLI::App& sweep, CommandContext& context) {
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

}  // namespace luthier
