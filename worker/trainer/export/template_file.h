// The chat template of an exported folder.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace luthier {

// Writes the template that was trained with into `folder`, unless it is simply the base model's: the job's own
// `source`, or one that was rendered with a `date`. Both may be empty.
absl::Status ExportTemplate(const std::string& source, const std::string& date, const std::string& base_folder,
                            const std::string& folder);

}  // namespace luthier
