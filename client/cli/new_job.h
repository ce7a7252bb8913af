// What the commands that create a job have in common.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/command.h"
#include "client/cli/job_flags.h"
#include "client/lib/client.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

struct NewJobFlags {
  std::string id;
  std::string request_id;
  SettingFlags settings;
  bool hold = false;
  bool dry_run = false;
  bool watch = false;
  bool wait = false;
  std::string timeout;

  bool follows() const { return watch || wait; }
};

// What their help says of one command.
struct NewJobHelp {
  const char* id;
  const char* dry_run;
  const char* watch;
  const char* request_id;
};

// `flags` must outlive the parse.
void AddNewJobFlags(CLI::App& command, const NewJobHelp& help, NewJobFlags& flags);

// `request`: a CreateFineTuningJobRequest or an ExportModelVersionRequest. Errors: INVALID_ARGUMENT naming the flag.
template <typename Request>
absl::Status ApplyNewJobFlags(const NewJobFlags& flags, Request& request) {
  request.set_job_id(flags.id);
  request.set_request_id(flags.request_id.empty() ? RandomRequestId() : flags.request_id);
  request.set_validate_only(flags.dry_run);
  request.set_hold(flags.hold);
  return ApplySettingFlags(flags.settings, *request.mutable_job());
}

// Its name; of a dry run every value with its reason.
void PrintNewJob(CommandContext& context, const v1::FineTuningJob& job, bool dry_run);

// FollowJob on standard error, as --watch or silently.
absl::Status FollowNewJob(CommandContext& context, const std::string& job, const NewJobFlags& flags,
                          absl::Duration timeout);

}  // namespace luthier
