// What an operator does who has lost the secret of every admin's token.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace luthier {

// Gives the admin's token `id` of a data folder that no server uses another secret, and makes the token if there is
// none; it does not expire. The old secret is worthless. Returns the secret. Errors: NOT_FOUND for a folder without a
// database; FAILED_PRECONDITION if a server uses the folder or the token is no admin's; INVALID_ARGUMENT for the id.
absl::StatusOr<std::string> ReplaceAdminToken(const std::string& data_dir, const std::string& id, absl::Time now);

}  // namespace luthier
