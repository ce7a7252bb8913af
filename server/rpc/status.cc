#include "server/rpc/status.h"

#include <algorithm>
#include <string>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace luthier {
namespace {

// A length-delimited field of a protobuf message, by hand: the three messages of google.rpc are not packaged in Debian 12.
std::string Field(int number, const std::string& bytes) {
  std::string out;
  google::protobuf::io::StringOutputStream stream(&out);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.WriteTag(static_cast<uint32_t>(number << 3 | 2));
  coded.WriteVarint32(static_cast<uint32_t>(bytes.size()));
  coded.WriteString(bytes);
  coded.Trim();
  return out;
}

// google.rpc.Status{code, message, details: [Any{BadRequest{field_violations}}]}.
std::string BadRequestDetails(const absl::Status& status) {
  const std::string message(status.message());
  std::string violations;
  for (size_t begin = 0; begin < message.size();) {
    const size_t end = std::min(message.find('\n', begin), message.size());
    const std::string line = message.substr(begin, end - begin);
    const size_t colon = line.find(": ");
    const std::string field = colon == std::string::npos ? "" : line.substr(0, colon);
    const std::string description = colon == std::string::npos ? line : line.substr(colon + 2);
    violations += Field(1, Field(1, field) + Field(2, description));
    begin = end + 1;
  }
  const std::string any = Field(1, "type.googleapis.com/google.rpc.BadRequest") + Field(2, violations);
  const std::string code = {'\x08', static_cast<char>(status.code())};
  return code + Field(2, message) + Field(3, any);
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());  // both are google.rpc.Code
  const std::string message(status.message());
  if (!absl::IsInvalidArgument(status)) return grpc::Status(code, message);
  return grpc::Status(code, message, BadRequestDetails(status));
}

}  // namespace luthier
