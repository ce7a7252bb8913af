#include "client/cli/new_job.h"

#include "client/cli/job_text.h"
#include "client/cli/job_watch_command.h"
#include "lib/wire/json_wire.h"

namespace luthier {

void AddNewJobFlags(CLI::App& command, const NewJobHelp& help, NewJobFlags& flags) {
  command.add_option("--id", flags.id, help.id)->type_name("ID");
  AddSettingFlags(command, flags.settings);
  command.add_flag("--hold", flags.hold, "Create it on hold: `luthier job start` releases it");
  command.add_flag("--dry-run", flags.dry_run, help.dry_run);
  command.add_flag("-w,--watch", flags.watch, help.watch);
  command.add_flag("--wait", flags.wait, "Wait silently until the job is over; the exit code says how it ended");
  command
      .add_option("--timeout", flags.timeout,
                  "Stop waiting after this long, such as 10m (exit code 8); the job goes on")
      ->type_name("DURATION");
  command.add_option("--request-id", flags.request_id, help.request_id)->type_name("UUID");
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

absl::Status FollowNewJob(CommandContext& context, const std::string& job, const NewJobFlags& flags,
                          absl::Duration timeout) {
  const WatchStyle style = flags.watch ? WatchStyle::kView : WatchStyle::kQuiet;
  return FollowJob(context, job, style, timeout, /*to_stderr=*/true);
}

}  // namespace luthier
