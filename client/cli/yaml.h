// YAML as JSON values and back.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Bytes of a settings file at most. Whoever reads one need not read further than a byte beyond: ParseYaml() refuses it.
constexpr size_t kMostYamlBytes = size_t{1} << 20;

struct YamlDocument {
  nlohmann::json value;
  std::map<std::string, int> lines;  // of each field, by its path: `lora.rank` → 4
};

// Reads YAML 1.2's core schema, and JSON. `name` is what messages call the text. Errors: INVALID_ARGUMENT `name:line:
// …` for a syntax error, a field given twice, or more nesting or content than a settings file has.
absl::StatusOr<YamlDocument> ParseYaml(const std::string& text, const std::string& name);

// Block style; text that would read as something else is quoted.
std::string ToYaml(const nlohmann::json& value);

}  // namespace luthier
