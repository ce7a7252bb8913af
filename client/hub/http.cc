#include "client/hub/http.h"

#include "client/hub/http_api.h"

namespace luthier {
namespace {

absl::Status ErrorOf(int code, LuthierBuffer error) {
  const std::string message = TakeText(error);
  return code == kLuthierHttpBroken ? absl::UnavailableError(message) : absl::FailedPreconditionError(message);
}

}  // namespace

HttpAnswer::~HttpAnswer() { luthier_http_answer_free(handle_); }

std::string HttpAnswer::Header(absl::string_view name) const {
  LuthierBuffer value{};
  return luthier_http_header(handle_, name.data(), name.size(), &value) ? TakeText(value) : "";
}

absl::StatusOr<size_t> HttpAnswer::Read(std::span<char> buffer) {
  size_t count = 0;
  LuthierBuffer error{};
  const int code = luthier_http_read(handle_, buffer.data(), buffer.size(), &count, &error);
  if (code != 0) return ErrorOf(code, error);
  return count;
}

absl::StatusOr<std::unique_ptr<Http>> Http::Open(absl::Duration connect_timeout, absl::Duration idle_timeout) {
  LuthierHttp* handle = nullptr;
  LuthierBuffer error{};
  const int code = luthier_http_new(static_cast<uint64_t>(absl::ToInt64Milliseconds(connect_timeout)),
                                    static_cast<uint64_t>(absl::ToInt64Milliseconds(idle_timeout)), &handle, &error);
  if (code != 0) return ErrorOf(code, error);
  return std::unique_ptr<Http>(new Http(handle));
}

Http::~Http() { luthier_http_free(handle_); }

absl::StatusOr<HttpAnswer> Http::Get(const std::string& url, const std::string& token, int64_t offset) const {
  LuthierHttpAnswer* answer = nullptr;
  int32_t status = 0;
  LuthierBuffer error{};
  const int code = luthier_http_get(handle_, url.data(), url.size(), token.data(), token.size(),
                                    static_cast<uint64_t>(offset), &answer, &status, &error);
  if (code != 0) return ErrorOf(code, error);
  return HttpAnswer(answer, status);
}

}  // namespace luthier
