#include "lib/checkpoint/json_file.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/json_shape.h"
#include "lib/checkpoint/open_keys.h"

namespace luthier {
namespace {

// Line, column and what was expected there, without the name of nlohmann's exception in front. What it read last may be
// the whole file.
absl::string_view WhatIsWrong(absl::string_view what) {
  constexpr size_t kMost = 200;
  const size_t line = what.find("line "), name = what.find("] ");
  const size_t begin = line != absl::string_view::npos ? line : name == absl::string_view::npos ? 0 : name + 2;
  return what.substr(begin, kMost);
}

template <typename Json>
absl::StatusOr<Json> Parsed(const std::string& path, absl::string_view remedy) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat(path, ": not found; ", remedy));
  std::string text, piece(size_t{1} << 16, '\0');
  do {
    stream.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    text.append(piece, 0, static_cast<size_t>(stream.gcount()));
  } while (stream);
  if (stream.bad()) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read; ", remedy));  // a folder
  if (ShapeOfJson(text).depth > kMaxJsonDepth) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is nested deeper than ", kMaxJsonDepth, " levels"));
  }
  std::string twice;
  OpenKeys keys;
  const auto note = [&](int, nlohmann::json::parse_event_t event, const Json& parsed) {
    if (keys.IsRepeated(event, parsed)) twice = parsed.template get<std::string>();
    return true;
  };
  try {
    Json parsed = Json::parse(text, note);
    if (twice.empty()) return parsed;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has the field '", twice, "' twice in one block; remove the one that is wrong"));
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid JSON: ", WhatIsWrong(error.what())));
  }
}

}  // namespace

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, absl::string_view remedy) {
  return Parsed<nlohmann::json>(path, remedy);
}

absl::StatusOr<nlohmann::ordered_json> ReadOrderedJsonFile(const std::string& path, absl::string_view remedy) {
  return Parsed<nlohmann::ordered_json>(path, remedy);
}

}  // namespace luthier
