#include "client/cli/label_flag.h"

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {

absl::StatusOr<std::pair<std::string, std::string>> ParseLabel(const std::string& label) {
  const size_t equals = label.find('=');
  if (equals == std::string::npos || equals == 0)
    return absl::InvalidArgumentError(absl::StrCat("--label: '", label, "' is no label; give KEY=VALUE"));
  return std::pair(label.substr(0, equals), label.substr(equals + 1));
}

absl::Status SetLabels(const std::vector<std::string>& labels, v1::FineTuningJob& job) {
  for (const std::string& label : labels) {
    LUTHIER_ASSIGN_OR_RETURN(auto pair, ParseLabel(label));
    (*job.mutable_labels())[pair.first] = std::move(pair.second);
  }
  return absl::OkStatus();
}

}  // namespace luthier
