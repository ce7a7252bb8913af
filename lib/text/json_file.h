// Small JSON files of a base model.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/text/json.h"

namespace luthier {

// The whole file as bytes. NOT_FOUND if it does not exist.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);
// NOT_FOUND if it does not exist, INVALID_ARGUMENT if it is not a JSON object.
absl::StatusOr<OrderedJson> ReadJsonObject(const std::string& path);

}  // namespace luthier
