#include "lib/plan/block_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/did_you_mean.h"

namespace luthier {
namespace {

using nlohmann::json;

// Long values would bury the message.
constexpr size_t kMaxShownValue = 80;
// Names of a user's choice are compared with the names of all layers.
constexpr size_t kMaxEntries = 256;

std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kMaxShownValue) text = text.substr(0, kMaxShownValue) + "…";
  return text;
}

std::string TooMany(const json& value) {
  return absl::StrCat("has ", value.size(), " entries; give at most ", kMaxEntries);
}

}  // namespace

bool NumberRange::Contains(double value) const {
  if (!std::isfinite(value)) return false;
  return (low_included ? value >= low : value > low) && (high_included ? value <= high : value < high);
}

BlockReader::BlockReader(const json& object, std::string path, std::vector<std::string>& violations)
    : object_(object), path_(std::move(path)), violations_(violations) {}

void BlockReader::Violation(const char* field, absl::string_view what) {
  violations_.push_back(absl::StrCat(path_, field, ": ", what));
}

const json* BlockReader::Raw(const char* field) {
  known_.push_back(field);
  const auto found = object_.find(field);
  if (found == object_.end() || found->is_null() || *found == "auto") return nullptr;
  return &*found;
}

void BlockReader::Integer(const char* field, std::optional<int64_t>& target, int64_t low, int64_t high) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  // 3.0 is what a spreadsheet or a script makes of 3.
  const bool whole = value->is_number() && std::floor(value->get<double>()) == value->get<double>();
  if (!whole || value->get<double>() < static_cast<double>(low) || value->get<double>() > static_cast<double>(high)) {
    return Violation(field, absl::StrCat(Shown(*value), whole ? " is out of range" : " is not a whole number",
                                         "; give a whole number from ", low, " to ", high, ", or auto"));
  }
  target = value->get<int64_t>();
}

void BlockReader::Number(const char* field, std::optional<double>& target, const NumberRange& range) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  if (!value->is_number() || !range.Contains(value->get<double>())) {
    return Violation(field, absl::StrCat(Shown(*value), value->is_number() ? " is out of range" : " is not a number",
                                         "; give ", range.words, ", or auto"));
  }
  target = value->get<double>();
}

void BlockReader::Flag(const char* field, std::optional<bool>& target) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  if (!value->is_boolean()) {
    return Violation(field, absl::StrCat(Shown(*value), " is neither true nor false; give one of them, or auto"));
  }
  target = value->get<bool>();
}

void BlockReader::Text(const char* field, std::string& target) {
  known_.push_back(field);
  const auto found = object_.find(field);
  if (found == object_.end() || found->is_null()) return;
  if (!found->is_string()) return Violation(field, absl::StrCat(Shown(*found), " is not text; give a string"));
  target = found->get<std::string>();
  if (target.find('\0') != std::string::npos) {
    target.clear();
    Violation(field, "contains a NUL character; remove it");
  }
}

void BlockReader::TextList(const char* field, std::vector<std::string>& target) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  if (!value->is_array()) return Violation(field, absl::StrCat(Shown(*value), " is not a list; give a list of names"));
  if (value->size() > kMaxEntries) return Violation(field, TooMany(*value));
  for (const json& text : *value) {
    if (!text.is_string() || text.get<std::string>().empty() ||
        text.get<std::string>().find('\0') != std::string::npos) {
      return Violation(field, absl::StrCat(Shown(text), " is not a name; give a list of names"));
    }
    target.push_back(text.get<std::string>());
  }
}

void BlockReader::IntegerList(const char* field, std::vector<int64_t>& target, int64_t low, int64_t high) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  const std::string remedy = absl::StrCat("; give a list of whole numbers from ", low, " to ", high);
  if (!value->is_array()) return Violation(field, absl::StrCat(Shown(*value), " is not a list", remedy));
  if (value->size() > kMaxEntries) return Violation(field, TooMany(*value));
  for (const json& number : *value) {
    if (!number.is_number_integer() || number.get<double>() < static_cast<double>(low) ||
        number.get<double>() > static_cast<double>(high)) {
      return Violation(field, absl::StrCat(Shown(number), " is not one", remedy));
    }
    target.push_back(number.get<int64_t>());
  }
}

namespace {

// The block in a field, whose names are the user's; null if it is absent, or none, which is then a violation. `form`:
// of its entries.
const json* NamedEntries(BlockReader& reader, const char* field, const char* form) {
  const json* value = reader.Raw(field);
  if (value == nullptr) return nullptr;
  if (value->is_object() && value->size() <= kMaxEntries) return value;
  reader.Violation(field, value->is_object() ? TooMany(*value)
                                             : absl::StrCat(Shown(*value), " is not a block; give {name: ", form, "}"));
  return nullptr;
}

}  // namespace

template <typename Value, typename Read>
void BlockReader::Map(const char* field, std::map<std::string, Value>& target, const Read& read) {
  const json* value = NamedEntries(*this, field, "number");
  if (value == nullptr) return;
  for (const auto& [name, number] : value->items()) {
    std::vector<std::string> faults;
    std::optional<Value> parsed;
    BlockReader entries(*value, "", faults);
    read(entries, name.c_str(), parsed);
    if (!parsed)
      return Violation(field, faults.empty() ? absl::StrCat(name, ": has no value; give a number") : faults[0]);
    target[name] = *parsed;
  }
}

void BlockReader::IntegerMap(const char* field, std::map<std::string, int64_t>& target, int64_t low, int64_t high) {
  Map(field, target, [&](BlockReader& entries, const char* name, std::optional<int64_t>& parsed) {
    entries.Integer(name, parsed, low, high);
  });
}

void BlockReader::NumberMap(const char* field, std::map<std::string, double>& target, const NumberRange& range) {
  Map(field, target, [&](BlockReader& entries, const char* name, std::optional<double>& parsed) {
    entries.Number(name, parsed, range);
  });
}

void BlockReader::TextMap(const char* field, std::map<std::string, std::string>& target) {
  const json* value = NamedEntries(*this, field, "text");
  if (value == nullptr) return;
  for (const auto& [name, text] : value->items()) {
    if (!text.is_string()) return Violation(field, absl::StrCat(name, ": is not text; put it in quotes"));
    target[name] = text.get<std::string>();
  }
}

void BlockReader::Choice(const char* field, std::optional<std::string>& target,
                         std::initializer_list<const char*> choices) {
  const json* value = Raw(field);
  if (value == nullptr) return;
  const auto chosen =
      std::find_if(choices.begin(), choices.end(), [&](const char* choice) { return *value == choice; });
  if (chosen == choices.end()) {
    return Violation(field, absl::StrCat(Shown(*value), " is not known; give one of: ", absl::StrJoin(choices, ", ")));
  }
  target = *chosen;
}

void BlockReader::Choice(const char* field, std::string& target, std::initializer_list<const char*> choices) {
  std::optional<std::string> chosen;
  Choice(field, chosen, choices);
  if (chosen) target = *chosen;
}

void BlockReader::Finish() {
  for (const auto& [name, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    const std::string near = DidYouMean(name, known_);
    violations_.push_back(absl::StrCat(path_, name.substr(0, kMaxShownValue), ": unknown field; ",
                                       near.empty() ? absl::StrCat("known: ", absl::StrJoin(known_, ", "))
                                                    : absl::StrCat("did you mean '", near, "'?")));
  }
}

}  // namespace luthier
