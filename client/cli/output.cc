#include "client/cli/output.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/yaml.h"

namespace luthier {

const std::vector<std::string>& OutputFormatNames() {
  static const auto* names =
      new std::vector<std::string>{"table", "wide", "json", "yaml", "name"};  // in the enum's order
  return *names;
}

absl::StatusOr<OutputFormat> ParseOutputFormat(absl::string_view name) {
  const std::vector<std::string>& names = OutputFormatNames();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<OutputFormat>(found - names.begin());
  return absl::InvalidArgumentError(
      absl::StrCat("-o: '", name, "' is not known; give one of: ", absl::StrJoin(names, ", ")));
}

std::string FormatJson(const nlohmann::json& value, OutputFormat format) {
  if (format == OutputFormat::kYaml) return ToYaml(value);
  return value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string FullName(absl::string_view collection, absl::string_view id) {
  return absl::StartsWith(id, absl::StrCat(collection, "/")) ? std::string(id) : absl::StrCat(collection, "/", id);
}

std::string ShortName(absl::string_view name) {
  const size_t slash = name.rfind('/');
  return std::string(slash == absl::string_view::npos ? name : name.substr(slash + 1));
}

}  // namespace luthier
