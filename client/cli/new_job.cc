#include "client/cli/new_job.h"

#include "absl/strings/str_cat.h"
#include "client/cli/duration_flag.h"
#include "client/cli/job_text.h"
#include "client/cli/text.h"
#include "lib/base/status_macros.h"
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

std::string HowToRepeat(const std::string& request_id, const v1::FineTuningJob& job) {
  const std::string deadline =
      job.has_deadline()
          ? absl::StrCat(" and --deadline ",
                         absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", ToTime(job.deadline()), absl::UTCTimeZone()))
          : "";
  return absl::StrCat("it may have been created or not: the same command with --request-id ", request_id, deadline,
                      " makes sure that it is, once");
}

bool IsNoAnswer(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kInternal:  // a reset in the middle of a message, as proxies send it
    case absl::StatusCode::kUnknown: return true;
    default: return false;
  }
}

void PrintNewJob(CommandContext& context, const v1::FineTuningJob& job, const NewJobFlags& flags) {
  if (context.ForPrograms()) {
    if (flags.follows() && !flags.dry_run) return context.Say(job.name());
    context.PrintForPrograms(MessageToJson(job));
  } else if (flags.dry_run) {
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
  absl::Status outcome = FollowJob(context, job, flags.style(), timeout, /*to_stderr=*/true);
  if (!context.ForPrograms()) return outcome;
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const absl::StatusOr<v1::FineTuningJob> now = client->GetJob(job);
  if (now.ok()) context.PrintForPrograms(MessageToJson(*now));
  outcome.Update(now.status());
  return outcome;
}

}  // namespace luthier
