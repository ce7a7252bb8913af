// What the commands that create jobs have in common.
#pragma once

#include <unistd.h>

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/command.h"
#include "client/cli/exit_code.h"
#include "client/cli/job_flags.h"
#include "client/cli/job_watch_command.h"
#include "client/lib/client.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// Of one job or of many.
struct CreationFlags {
  std::string id;
  std::string request_id;
  SettingFlags settings;
  bool hold = false;
  bool dry_run = false;
  bool watch = false;
  std::string timeout;
};

// Of one job.
struct NewJobFlags : CreationFlags {
  bool wait = false;

  bool follows() const { return watch || wait; }
  WatchStyle style() const { return watch ? WatchStyle::kView : WatchStyle::kQuiet; }
};

// What their help says of one command.
struct CreationHelp {
  const char* id;
  const char* hold = "Create it on hold: `luthier job start` releases it";
  const char* dry_run;
  const char* watch;
  const char* timeout = "Stop waiting after this long, such as 10m (exit code 8); the job goes on";
  const char* request_id;
};

// `flags` must outlive the parse.
void AddCreationFlags(CLI::App& command, const CreationHelp& help, CreationFlags& flags);
void AddNewJobFlags(CLI::App& command, const CreationHelp& help, NewJobFlags& flags);

// `request`: any that creates; `job`: the one in it. Errors: INVALID_ARGUMENT naming the flag.
template <typename Request>
absl::Status ApplyCreationFlags(const CreationFlags& flags, Request& request, v1::FineTuningJob& job) {
  request.set_request_id(flags.request_id.empty() ? RandomRequestId() : flags.request_id);
  request.set_validate_only(flags.dry_run);
  request.set_hold(flags.hold);
  return ApplySettingFlags(flags.settings, job);
}

// `request`: a CreateFineTuningJobRequest or an ExportModelVersionRequest. Errors: as above.
template <typename Request>
absl::Status ApplyNewJobFlags(const NewJobFlags& flags, Request& request) {
  request.set_job_id(flags.id);
  return ApplyCreationFlags(flags, request, *request.mutable_job());
}

// What makes the same command create nothing twice: the id of its request, and as a time the deadline of `job`, the one
// in it. Six hours from now are others when it is repeated.
std::string HowToRepeat(const std::string& request_id, const v1::FineTuningJob& job);

// Whether it says nothing about what the server has done: that it is out of reach, or that the call broke on its way.
bool IsNoAnswer(const absl::Status& status);

// The answer of `create`, a call that may be repeated as `how` says, which is said if it gets none, also since Ctrl-C
// comes before it.
template <typename Create>
auto CreateOnce(CommandContext& context, const CreationFlags& flags, const std::string& how, Create create)
    -> decltype(create()) {
  if (flags.dry_run) return create();
  context.interrupts().Handle([&context, how] {
    if (context.err_terminal().interactive) context.err() << "\n";  // behind the terminal's ^C
    context.Say(how);
    _exit(static_cast<int>(ExitCode::kCancelled));
  });
  auto created = create();
  context.interrupts().Handle({});
  if (IsNoAnswer(created.status())) context.Say(how);
  return created;
}

// Its name, or of a dry run every value with its reason; for programs all of it. They get one document: with --watch or
// --wait that of FollowNewJob(), and until then its name is said.
void PrintNewJob(CommandContext& context, const v1::FineTuningJob& job, const NewJobFlags& flags);

// How long to wait for what is created. Errors: INVALID_ARGUMENT for no duration, and for one that nothing waits for.
absl::StatusOr<absl::Duration> TimeoutOf(const CreationFlags& flags, bool waits);

// FollowJob on standard error, as --watch or silently; then, however that ended, the job as it is for programs.
absl::Status FollowNewJob(CommandContext& context, const std::string& job, const NewJobFlags& flags,
                          absl::Duration timeout);

}  // namespace luthier
