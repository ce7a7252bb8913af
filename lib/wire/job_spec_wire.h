// A job file as the messages of the API, and back.
#pragma once

#include "absl/status/statusor.h"
#include "lib/plan/job_spec.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// Fills `spec` and `labels` of a job. Errors: INVALID_ARGUMENT if a value does not fit its message field.
absl::StatusOr<v1::FineTuningJob> JobToProto(const JobSpec& spec);

// Reads `spec` and `labels` of a job under the rules of a job file, so that file and API refuse the same things.
// Errors: INVALID_ARGUMENT with one line for every violation, as ParseJobSpec.
absl::StatusOr<JobSpec> JobFromProto(const v1::FineTuningJob& job);

}  // namespace luthier
