// Texts in JSON that others wrote.
#pragma once

#include <string>

namespace luthier {

// A field's text; empty if there is none, if it is no text, or if `value` is no object: nlohmann's `value()` throws at
// the last two. `Json`: nlohmann::json or nlohmann::ordered_json.
template <typename Json>
std::string TextOf(const Json& value, const char* field) {
  const auto found = value.find(field);
  return found != value.end() && found->is_string() ? found->template get<std::string>() : "";
}

}  // namespace luthier
