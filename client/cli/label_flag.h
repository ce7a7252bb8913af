// Flags that take labels, KEY=VALUE.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// Key and value. Errors: INVALID_ARGUMENT naming --label.
absl::StatusOr<std::pair<std::string, std::string>> ParseLabel(const std::string& label);

// Gives the job these labels, too. Errors: as above.
absl::Status SetLabels(const std::vector<std::string>& labels, v1::FineTuningJob& job);

}  // namespace luthier
