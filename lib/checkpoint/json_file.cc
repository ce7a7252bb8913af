#include "lib/checkpoint/json_file.h"

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "lib/base/json_shape.h"

namespace luthier {

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, absl::string_view remedy) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat(path, ": not found; ", remedy));
  const std::string text(std::istreambuf_iterator<char>(stream), {});
  if (ShapeOfJson(text).depth > kMaxJsonDepth) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is nested deeper than ", kMaxJsonDepth, " levels"));
  }
  nlohmann::json parsed = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid JSON"));
  return parsed;
}

}  // namespace luthier
