// Regular expressions that users give for names of modules and weights. RE2, because what a user sends to a server must
// not be able to backtrack for hours; of Python's syntax, which PEFT takes, it lacks look-around and back-references,
// and those are refused.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace luthier {

// Whether `pattern` can be used. Errors: INVALID_ARGUMENT saying why not.
absl::Status CheckPattern(const std::string& pattern);

// Whether all of `name` matches. A pattern that cannot be used matches nothing.
bool MatchesWhole(const std::string& pattern, absl::string_view name);

// The same for `name` itself or its end behind a dot, as PEFT's patterns of ranks match.
bool MatchesEnd(const std::string& pattern, absl::string_view name);

// The same for `name` itself or its beginning in front of a dot.
bool MatchesBeginning(const std::string& pattern, absl::string_view name);

}  // namespace luthier
