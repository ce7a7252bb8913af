// What the exit code of `luthier` says, for scripts.
#pragma once

#include "absl/status/status.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

enum class ExitCode {
  kOk = 0,
  kFailure = 1,
  kCancelled = 2,  // the job was cancelled, or the command interrupted
  kUsage = 3,      // the command line or what it was given is wrong: change it before trying again
  kAuthentication = 4,
  kNotFound = 5,
  kUnavailable = 6,  // no server, or it cannot serve now: try again
  kJobFailed = 7,
  kTimeout = 8,
};

// Marks a status whose code alone would say something else.
absl::Status WithExitCode(absl::Status status, ExitCode code);

// That which the status was marked with; otherwise by its code.
ExitCode ExitCodeOf(const absl::Status& status);

// OK for a job that succeeded; otherwise a status that names the job and exits with kJobFailed or kCancelled.
absl::Status OutcomeOf(const v1::FineTuningJob& job);

}  // namespace luthier
