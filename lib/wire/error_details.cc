#include "lib/wire/error_details.h"

#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace luthier {
namespace {

using google::protobuf::io::CodedInputStream;

constexpr absl::string_view kTypePrefix = "type.googleapis.com/google.rpc.";

// A length-delimited field of a protobuf message.
std::string Field(int number, absl::string_view bytes) {
  std::string out;
  google::protobuf::io::StringOutputStream stream(&out);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.WriteTag(static_cast<uint32_t>(number << 3 | 2));
  coded.WriteVarint32(static_cast<uint32_t>(bytes.size()));
  coded.WriteRaw(bytes.data(), static_cast<int>(bytes.size()));
  coded.Trim();
  return out;
}

// A google.protobuf.Any in the field `details` of google.rpc.Status.
std::string Detail(absl::string_view type, const std::string& bytes) {
  return Field(3, Field(1, absl::StrCat(kTypePrefix, type)) + Field(2, bytes));
}

// Calls `visit` for every length-delimited field; other fields are passed over.
void ForEachField(absl::string_view bytes, const std::function<void(int, const std::string&)>& visit) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
  while (const uint32_t tag = input.ReadTag()) {
    uint32_t size = 0;
    uint64_t number = 0;
    std::string value;
    switch (tag & 7) {
      case 0:
        if (!input.ReadVarint64(&number)) return;
        break;
      case 2:
        if (!input.ReadVarint32(&size) || !input.ReadString(&value, static_cast<int>(size))) return;
        visit(static_cast<int>(tag >> 3), value);
        break;
      default: return;
    }
  }
}

void ReadDetail(absl::string_view type, const std::string& bytes, ErrorDetails& details) {
  if (type == "ErrorInfo") {
    ForEachField(bytes, [&](int field, const std::string& value) {
      if (field == 1) details.reason = value;
    });
  } else if (type == "BadRequest") {
    ForEachField(bytes, [&](int, const std::string& violation) {
      FieldViolation read;
      ForEachField(violation,
                   [&](int field, const std::string& value) { (field == 1 ? read.field : read.description) = value; });
      details.violations.push_back(std::move(read));
    });
  } else if (type == "RetryInfo") {
    ForEachField(bytes, [&](int, const std::string& value) {
      google::protobuf::Duration delay;
      if (delay.ParseFromString(value)) {
        details.retry_delay = absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
      }
    });
  }
}

}  // namespace

std::vector<FieldViolation> ViolationsIn(absl::string_view message) {
  std::vector<FieldViolation> violations;
  for (const absl::string_view line : absl::StrSplit(message, '\n', absl::SkipEmpty())) {
    const size_t colon = line.find(": ");
    if (colon == absl::string_view::npos) {
      violations.push_back({"", std::string(line)});
    } else {
      violations.push_back({std::string(line.substr(0, colon)), std::string(line.substr(colon + 2))});
    }
  }
  return violations;
}

std::string SerializeErrorDetails(int code, absl::string_view message, const ErrorDetails& details) {
  std::string status = {'\x08', static_cast<char>(code)};  // the field `code`; codes are below 128
  status += Field(2, message);
  status += Detail("ErrorInfo", Field(1, details.reason) + Field(2, "luthier"));
  if (!details.violations.empty()) {
    std::string violations;
    for (const FieldViolation& violation : details.violations) {
      violations += Field(1, Field(1, violation.field) + Field(2, violation.description));
    }
    status += Detail("BadRequest", violations);
  }
  if (details.retry_delay) {
    google::protobuf::Duration delay;
    delay.set_seconds(absl::ToInt64Seconds(*details.retry_delay));
    status += Detail("RetryInfo", Field(1, delay.SerializeAsString()));
  }
  return status;
}

ErrorDetails ParseErrorDetails(absl::string_view bytes) {
  ErrorDetails details;
  ForEachField(bytes, [&](int field, const std::string& any) {
    if (field != 3) return;
    std::string type, value;
    ForEachField(any, [&](int any_field, const std::string& part) { (any_field == 1 ? type : value) = part; });
    absl::string_view name = type;
    if (absl::ConsumePrefix(&name, kTypePrefix)) ReadDetail(name, value, details);
  });
  return details;
}

}  // namespace luthier
