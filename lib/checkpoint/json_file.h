// The small JSON files of model and adapter folders, and a trainer's spec.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Errors, naming the file: NOT_FOUND with `remedy`; INVALID_ARGUMENT if it is no JSON, with line and column, cannot be
// read or is nested deeper than data is.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, absl::string_view remedy);
// The same for a file whose fields count in their order.
absl::StatusOr<nlohmann::ordered_json> ReadOrderedJsonFile(const std::string& path, absl::string_view remedy);

}  // namespace luthier
