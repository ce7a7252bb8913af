// JSON values as protobuf messages and back.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/struct.pb.h"
#include "nlohmann/json.hpp"

namespace luthier {

// `json` must be an object. Errors: INVALID_ARGUMENT if a Struct cannot hold it (no object, not UTF-8, nested too
// deep).
absl::StatusOr<google::protobuf::Struct> JsonToStruct(const nlohmann::json& json);

// Numbers come back as double where they have a fraction, else as integers.
nlohmann::json StructToJson(const google::protobuf::Struct& value);

// Fields under their proto names, as `luthier -o json` prints them. Unset fields are left out.
nlohmann::json MessageToJson(const google::protobuf::Message& message);

}  // namespace luthier
