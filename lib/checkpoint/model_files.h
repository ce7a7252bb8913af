// Which files of a folder in Hugging Face format make a base model.
#pragma once

#include "absl/strings/string_view.h"

namespace luthier {

// Whether a trainer reads the file or an export copies it, which stands at `path` inside the folder: weights, JSON,
// templates and the tokenizer's other forms at its top, and named templates. Others (READMEs, pickles of other engines,
// weights in other forms) are left behind.
bool BelongsToModel(absl::string_view path);

// Of those, one that no trainer reads: other engines' forms of the tokenizer, which llama.cpp wants to convert a merged
// model.
bool IsForConverters(absl::string_view path);

}  // namespace luthier
