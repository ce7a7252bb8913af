// The source of a chat template as folders hold it.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace luthier {

// `folder`/chat_template.jinja, else `chat_template` of tokenizer_config.json (the one named "default" if there are
// several). NOT_FOUND if there is none.
absl::StatusOr<std::string> ReadTemplateSource(const std::string& folder);

// `source` behind a comment that pins `date` (YYYY-MM-DD): ChatTemplate::Compile takes the date from it, so that a
// tuned model is asked as it was trained. For everybody else it is a comment.
std::string WithPinnedDate(const std::string& source, const std::string& date);

}  // namespace luthier
