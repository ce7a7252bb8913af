// A submitted job, checked against everything that is known before a node is taken.
#pragma once

#include "absl/status/statusor.h"
#include "server/rpc/backend.h"
#include "server/rpc/convert.h"

namespace luthier {

struct PreparedJob {
  Job job;
  StoredSpec spec;
};

// Parses the spec, encodes every row with the base model's tokenizer, and settles every open value with its reason.
// Errors: INVALID_ARGUMENT with every violation; NOT_FOUND for base model or dataset; RESOURCE_EXHAUSTED if it cannot fit.
absl::StatusOr<PreparedJob> PrepareJob(const Backend& backend, const v1::CreateFineTuningJobRequest& request);

}  // namespace luthier
