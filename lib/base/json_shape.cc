#include "lib/base/json_shape.h"

#include <algorithm>

namespace luthier {

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
  }
  return shape;
}

}  // namespace luthier
