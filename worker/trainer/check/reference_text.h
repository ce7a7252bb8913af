// Tokenizers, chat templates and masks beside what transformers wrote (shared/reference/text, README there).
#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/statusor.h"

namespace luthier {

// Writes one JSON line for each record under `folder`/expected. A probe that differs for a reason in the table of
// docs/text.md says so ("known") and is no fault, and a tokenizer or template that is refused is a fault of its own
// records only. Returns whether there is no other difference. Errors: NOT_FOUND if there is no record, or no file of a
// template. JSON that lacks a field throws nlohmann::json::exception.
absl::StatusOr<bool> CheckText(const std::string& folder, std::ostream& out);

}  // namespace luthier
