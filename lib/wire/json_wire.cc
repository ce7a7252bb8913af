#include "lib/wire/json_wire.h"

#include <cmath>

#include "google/protobuf/util/json_util.h"

namespace luthier {
namespace {

using google::protobuf::Value;

// Beyond 2^53 a double no longer tells neighbouring integers apart.
constexpr double kLargestExactInteger = 9007199254740992.0;

nlohmann::json ValueToJson(const Value& value) {
  switch (value.kind_case()) {
    case Value::kNumberValue: {
      const double number = value.number_value();
      if (std::abs(number) < kLargestExactInteger && number == std::floor(number)) return static_cast<int64_t>(number);
      return number;
    }
    case Value::kStringValue: return value.string_value();
    case Value::kBoolValue: return value.bool_value();
    case Value::kStructValue: return StructToJson(value.struct_value());
    case Value::kListValue: {
      nlohmann::json list = nlohmann::json::array();
      for (const Value& element : value.list_value().values()) list.push_back(ValueToJson(element));
      return list;
    }
    default: return nullptr;
  }
}

}  // namespace

absl::StatusOr<google::protobuf::Struct> JsonToStruct(const nlohmann::json& json) {
  google::protobuf::Struct result;
  // `replace`: a log line or prompt with broken UTF-8 must not lose the event that carries it.
  const std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (!json.is_object() || !google::protobuf::util::JsonStringToMessage(text, &result).ok()) {
    return absl::InvalidArgumentError("not a JSON object that a message can hold: " + text.substr(0, 100));
  }
  return result;
}

nlohmann::json StructToJson(const google::protobuf::Struct& value) {
  nlohmann::json object = nlohmann::json::object();
  for (const auto& [key, element] : value.fields()) object[key] = ValueToJson(element);
  return object;
}

nlohmann::json MessageToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return nullptr;
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace luthier
