// Tokenizers, chat templates and masks beside what transformers wrote (shared/reference/text, README there).
#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/statusor.h"

namespace luthier {

// Writes one JSON line for each record under `folder`/expected. A probe that differs for a reason in the table of
// docs/text.md says so ("known") and is no fault. Returns whether there is no other difference. Errors: NOT_FOUND if
// there is no record; what a tokenizer or template is refused with. JSON that lacks a field throws
// nlohmann::json::exception.
absl::StatusOr<bool> CheckText(const std::string& folder, std::ostream& out);

}  // namespace luthier
