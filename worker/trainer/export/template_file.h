// The chat template of an exported folder.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "lib/text/template_source.h"

namespace luthier {

// Writes the template that was trained with into `folder`, unless it is simply the base model's: the job's `own`, or
// one that was rendered with a `date`. Both may be empty. What the folder has of the base model's gives way.
absl::Status ExportTemplate(const TemplateSources& own, const std::string& date, const std::string& base_folder,
                            const std::string& folder);

}  // namespace luthier
