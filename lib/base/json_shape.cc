#include "lib/base/json_shape.h"

#include <algorithm>
#include <charconv>
#include <system_error>

namespace luthier {
namespace {

bool IsHugeInteger(std::string_view number) {
  const char* const end = number.data() + number.size();
  int64_t negative = 0;
  uint64_t positive = 0;
  const auto read = number.front() == '-' ? std::from_chars(number.data(), end, negative)
                                          : std::from_chars(number.data(), end, positive);
  return read.ec == std::errc::result_out_of_range && number.find_first_of(".Ee") == std::string_view::npos;
}

}  // namespace

JsonShape ShapeOfJson(std::string_view text) {
  JsonShape shape;
  int64_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '{' || c == '[') shape.depth = std::max(shape.depth, ++depth);
    if (c == '}' || c == ']') --depth;
    if (c == ':') ++shape.keys;
    if (c != '-' && (c < '0' || c > '9')) continue;
    const std::string_view number = text.substr(i, text.find_first_not_of("+-.0123456789Ee", i) - i);
    i += number.size() - 1;
    if (shape.huge_integer.empty() && IsHugeInteger(number)) shape.huge_integer = number;
  }
  return shape;
}

}  // namespace luthier
