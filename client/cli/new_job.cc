#include "client/cli/new_job.h"

#include "client/cli/duration_flag.h"
#include "client/cli/job_text.h"
#include "client/cli/job_watch_command.h"
#include "lib/wire/json_wire.h"

namespace luthier {

void AddCreationFlags(CLI::App& command, const CreationHelp& help, CreationFlags& flags) {
  command.add_option("--id", flags.id, help.id)->type_name("ID");
  AddSettingFlags(command, flags.settings);
  command.add_flag("--hold", flags.hold, help.hold);
  command.add_flag("--dry-run", flags.dry_run, help.dry_run);
  command.add_option("--request-id", flags.request_id, help.request_id)->type_name("UUID");
  command.add_flag("-w,--watch", flags.watch, help.watch);
  command.add_option("--timeout", flags.timeout, help.timeout)->type_name("DURATION");
}

void AddNewJobFlags(CLI::App& command, const CreationHelp& help, NewJobFlags& flags) {
  AddCreationFlags(command, help, flags);
  command.add_flag("--wait", flags.wait, "Wait silently until the job is over; the exit code says how it ended");
}

void PrintNewJob(CommandContext& context, const v1::FineTuningJob& job, bool dry_run) {
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(job));
  } else if (dry_run) {
    context.out() << ResolvedTable(job, context.out_terminal());
  } else {
    context.out() << job.name() << std::endl;
  }
}

absl::StatusOr<absl::Duration> TimeoutOf(const CreationFlags& flags, bool waits) {
  if (!flags.timeout.empty() && !waits) {
    return absl::InvalidArgumentError(
        "--timeout: ends waiting, and nothing waits here; give --watch too, or --deadline, which ends the job itself");
  }
  return ParseDurationFlag("--timeout", flags.timeout);
}

absl::Status FollowNewJob(CommandContext& context, const std::string& job, const NewJobFlags& flags,
                          absl::Duration timeout) {
  const WatchStyle style = flags.watch ? WatchStyle::kView : WatchStyle::kQuiet;
  return FollowJob(context, job, style, timeout, /*to_stderr=*/true);
}

}  // namespace luthier
