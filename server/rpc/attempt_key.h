// Credentials of attempts: an agent that has none of an attempt can neither fetch what it reads nor upload what it
// learned.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace luthier {

// The key that all of them are made with, from the file `attempt-key` of the data folder, which is made if there is
// none: an attempt outlives the server that gave it its credential. Errors: DATA_LOSS; those of the disk.
absl::StatusOr<std::string> AttemptKeyOf(const std::string& data_dir);

// The credential of `jobs/{job}/attempts/{attempt}`: an HMAC (RFC 2104) of its name. A leaked one is worthless once the
// attempt is over, since numbers of attempts never come again.
std::string AttemptCredential(absl::string_view key, absl::string_view attempt);

}  // namespace luthier
