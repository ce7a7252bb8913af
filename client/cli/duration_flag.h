#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace luthier {

// `90s`, `10m`, `1h30m`, `7d`; empty: for ever. Errors: INVALID_ARGUMENT naming the flag.
absl::StatusOr<absl::Duration> ParseDurationFlag(const std::string& flag, const std::string& value);

}  // namespace luthier
