#include "lib/text/json_file.h"

#include <algorithm>
#include <fstream>
#include <ios>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/json_shape.h"
#include "lib/base/status_macros.h"

namespace luthier {

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t at_most) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  std::string content, piece(size_t{1} << 16, '\0');
  do {
    file.read(piece.data(), static_cast<std::streamsize>(std::min(piece.size(), at_most - content.size())));
    content.append(piece, 0, static_cast<size_t>(file.gcount()));
  } while (file && content.size() < at_most);
  if (file.bad()) return absl::DataLossError(absl::StrCat("cannot read ", path));  // a folder, or a disk that fails
  return content;
}

absl::StatusOr<OrderedJson> ReadJsonObject(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string content, ReadTextFile(path));
  if (ShapeOfJson(content).depth > kMaxJsonDepth) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is nested deeper than ", kMaxJsonDepth, " levels"));
  }
  OrderedJson json = OrderedJson::parse(content, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  return json;
}

}  // namespace luthier
