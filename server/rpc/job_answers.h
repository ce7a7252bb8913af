// Jobs as callers get them: those that they may see, and why they wait.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "luthier/v1/jobs.pb.h"
#include "server/rpc/backend.h"

namespace luthier {

// `jobs/{job}` as the record has it, which becomes the subject of the call. Errors: INVALID_ARGUMENT about `field`;
// NOT_FOUND, also for another tenant's.
absl::StatusOr<RecordedJob> FindJob(Backend& backend, Call& call, const std::string& name,
                                    absl::string_view field = "name");

// Says of each why it waits, which only the state knows: it follows from all the others and the nodes. A job that has
// moved on since it was read is shown as the state has it, so that none is shown waiting without a reason.
absl::Status AddPendingReasons(Backend& backend, const std::vector<v1::FineTuningJob*>& jobs);

// Both wait for the state loop.
absl::Status AnswerJob(Backend& backend, const RecordedJob& job, v1::FineTuningJob& response);
absl::Status GetJob(Backend& backend, Call& call, const std::string& name, v1::FineTuningJob& response);

}  // namespace luthier
