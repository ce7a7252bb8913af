// Which files of a folder in Hugging Face format make a base model.
#pragma once

#include "absl/strings/string_view.h"

namespace luthier {

// Whether a trainer reads the file, which stands at `path` inside the folder: weights, JSON and templates at its top,
// and named templates. Others (READMEs, pickles of other engines, weights in other forms) are left behind.
bool BelongsToModel(absl::string_view path);

}  // namespace luthier
