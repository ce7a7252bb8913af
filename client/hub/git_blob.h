// Git's name of a file's content, by which the hub names what it keeps in Git itself.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace luthier {

// SHA-1 over "blob SIZE", a zero byte and the content (git-scm.com/book, "Git Internals - Git Objects"), 40 lower-case
// hexadecimal digits. It tells damage apart; against intent, SHA-1 no longer holds. Errors: those of opening and
// reading the file.
absl::StatusOr<std::string> GitBlobIdOfFile(const std::string& path, int64_t bytes);

}  // namespace luthier
