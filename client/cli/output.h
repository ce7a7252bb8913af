// How results are printed: for people, or for programs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

enum class OutputFormat { kTable, kWide, kJson, kYaml, kName };

// The words of -o.
const std::vector<std::string>& OutputFormatNames();
absl::StatusOr<OutputFormat> ParseOutputFormat(absl::string_view name);

// For -o json and yaml, with a newline at the end.
std::string FormatJson(const nlohmann::json& value, OutputFormat format);

// `jobs/j1` of `j1` and of `jobs/j1`.
std::string FullName(absl::string_view collection, absl::string_view id);

// `j1` of `jobs/j1`.
std::string ShortName(absl::string_view name);

}  // namespace luthier
