// The small JSON files of a model or adapter folder.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Errors, naming the file: NOT_FOUND with `remedy`; INVALID_ARGUMENT if it is no JSON or nested deeper than data is.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, absl::string_view remedy);

}  // namespace luthier
