#include "client/cli/yaml.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/json_shape.h"
#include "yaml-cpp/yaml.h"

namespace luthier {
namespace {

using nlohmann::json;

// A settings file is small; these keep a hostile one from using up memory by aliases of aliases.
constexpr int kDeepest = 32;
constexpr int kMostNodes = 10000;

bool LooksLikeNumber(const std::string& text) {
  const size_t first = text.find_first_not_of("+-");
  if (first == std::string::npos || first > 1) return false;
  return std::isdigit(static_cast<unsigned char>(text[first])) || text[first] == '.';
}

// A plain scalar by the rules of the core schema.
json PlainScalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  int64_t integer = 0;
  double number = 0;
  if (!LooksLikeNumber(text)) return text;
  if (absl::SimpleAtoi(text, &integer)) return integer;
  const bool decimal = text.find_first_not_of("+-0123456789.eE") == std::string::npos;
  if (decimal && absl::SimpleAtod(text, &number)) return number;
  return text;
}

class Converter {
 public:
  explicit Converter(std::string name) : name_(std::move(name)) {}

  json Convert(const YAML::Node& node, const std::string& path, int depth) {
    if (depth > kDeepest || ++nodes_ > kMostNodes) {
      Fail(node.Mark(), "is nested too deeply or too large for a settings file");
      return nullptr;
    }
    switch (node.Type()) {
      case YAML::NodeType::Scalar: return node.Tag() == "!" ? json(node.Scalar()) : PlainScalar(node.Scalar());
      case YAML::NodeType::Sequence: {
        json list = json::array();
        for (const YAML::Node& element : node) list.push_back(Convert(element, path, depth + 1));
        return list;
      }
      case YAML::NodeType::Map: return ConvertMap(node, path, depth);
      default: return nullptr;
    }
  }

  std::map<std::string, int> lines;
  absl::Status status;

 private:
  json ConvertMap(const YAML::Node& node, const std::string& path, int depth) {
    json object = json::object();
    for (const auto& entry : node) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      const std::string field = path.empty() ? key : absl::StrCat(path, ".", key);
      if (!entry.first.IsScalar()) Fail(entry.first.Mark(), "has a field whose name is no text");
      if (object.contains(key)) Fail(entry.first.Mark(), absl::StrCat(field, ": is given twice; remove one"));
      lines[field] = entry.first.Mark().line + 1;
      object[key] = Convert(entry.second, field, depth + 1);
    }
    return object;
  }

  void Fail(const YAML::Mark& mark, const std::string& what) {
    if (status.ok()) status = absl::InvalidArgumentError(absl::StrCat(name_, ":", mark.line + 1, ": ", what));
  }

  std::string name_;
  int nodes_ = 0;
};

// What YAML 1.1, which many programs still read, takes for true and false.
bool IsOldBoolean(const std::string& text) {
  const std::string word = absl::AsciiStrToLower(text);
  return word == "y" || word == "n" || word == "yes" || word == "no" || word == "on" || word == "off";
}

// Whether text can stand without quotes and be read as the same text.
bool IsPlain(const std::string& text) {
  if (!PlainScalar(text).is_string() || LooksLikeNumber(text) || text.back() == ' ' || text.back() == ':') return false;
  if (IsOldBoolean(text)) return false;
  if (!std::isalpha(static_cast<unsigned char>(text[0])) && text[0] != '/') return false;
  const auto harmless = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view(" _./-,+=@").find(c) != absl::string_view::npos;
  };
  return std::all_of(text.begin(), text.end(), harmless);
}

std::string ScalarYaml(const json& value) {
  if (value.is_string() && IsPlain(value.get<std::string>())) return value.get<std::string>();
  // JSON's quoting is YAML's double-quoted style.
  std::string scalar = value.dump(-1, ' ', false, json::error_handler_t::replace);
  // To YAML 1.1 a number without a point is none: 1e-05 is text.
  if (const size_t e = scalar.find('e'); value.is_number_float() && e != std::string::npos && scalar.find('.') > e)
    scalar.insert(e, ".0");
  return scalar;
}

void Emit(const json& value, int indent, std::string& out);

// What follows `key:` or `-`: on the same line if it is short, else in lines of its own.
void EmitValue(const json& value, int indent, std::string& out) {
  if ((value.is_object() || value.is_array()) && !value.empty()) {
    out += "\n";
    Emit(value, indent, out);
  } else {
    absl::StrAppend(&out, " ", ScalarYaml(value), "\n");
  }
}

void Emit(const json& value, int indent, std::string& out) {
  const std::string margin(static_cast<size_t>(indent), ' ');
  if (value.is_object() && !value.empty()) {
    for (const auto& [key, element] : value.items()) {
      absl::StrAppend(&out, margin, ScalarYaml(key), ":");
      EmitValue(element, indent + 2, out);
    }
  } else if (value.is_array() && !value.empty()) {
    for (const json& element : value) {
      std::string item;
      Emit(element, indent + 2, item);
      // The first line of the element stands behind the dash.
      absl::StrAppend(&out, margin, "- ", item.substr(static_cast<size_t>(indent) + 2));
    }
  } else {
    absl::StrAppend(&out, margin, ScalarYaml(value), "\n");
  }
}

}  // namespace

absl::StatusOr<YamlDocument> ParseYaml(const std::string& text, const std::string& name) {
  if (text.size() > kMostYamlBytes) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": is larger than ", kMostYamlBytes,
                                                   " bytes, as no settings file may be; is it the right file?"));
  }
  if (json::accept(text)) {
    if (ShapeOfJson(text).depth > kDeepest)
      return absl::InvalidArgumentError(absl::StrCat(name, ": is nested too deeply for a settings file"));
    return YamlDocument{json::parse(text), {}};
  }
  try {
    Converter converter(name);
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    for (size_t i = 1; i < documents.size(); ++i) {
      if (documents[i].IsNull()) continue;  // behind a line `---` at the end
      return absl::InvalidArgumentError(absl::StrCat(name, ":", documents[i].Mark().line + 1,
                                                     ": is a second document; put it into a file of its own"));
    }
    json value = documents.empty() ? json() : converter.Convert(documents.front(), "", 0);
    if (!converter.status.ok()) return converter.status;
    return YamlDocument{std::move(value), std::move(converter.lines)};
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ":", error.mark.line + 1, ": ", error.msg));
  }
}

std::string ToYaml(const json& value) {
  std::string out;
  Emit(value, 0, out);
  return out;
}

}  // namespace luthier
