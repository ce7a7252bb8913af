// Keys that stand twice in an object of JSON: a parser keeps the last one, without a word.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace luthier {

// The keys of the objects that are open while a text is parsed.
class OpenKeys {
 public:
  // Of each event of the parser. Whether it is a key that its object has already.
  template <typename Json>
  bool IsRepeated(nlohmann::json::parse_event_t event, const Json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    return event == Event::key && !keys_.back().insert(parsed.template get<std::string>()).second;
  }

 private:
  std::vector<std::set<std::string>> keys_;
};

}  // namespace luthier
