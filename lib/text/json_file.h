// Small JSON files of a base model.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "lib/text/json.h"

namespace luthier {

// The whole file as bytes, or what it begins with if it is longer than `at_most`. NOT_FOUND if it does not exist.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t at_most = std::string::npos);
// NOT_FOUND if it does not exist, INVALID_ARGUMENT if it is not a JSON object.
absl::StatusOr<OrderedJson> ReadJsonObject(const std::string& path);

}  // namespace luthier
