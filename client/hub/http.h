// GET requests over HTTP, through the Rust crate `reqwest`. Proxies come from the environment (HTTPS_PROXY, NO_PROXY),
// certificates from the system (or SSL_CERT_FILE).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct LuthierHttp;
struct LuthierHttpAnswer;

namespace luthier {

// An answer whose body is being read. One thread; movable.
class HttpAnswer {
 public:
  HttpAnswer(HttpAnswer&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), status_(other.status_) {}
  HttpAnswer& operator=(HttpAnswer&& other) = delete;
  ~HttpAnswer();

  int status() const { return status_; }
  // Empty if there is none.
  std::string Header(absl::string_view name) const;
  // Some bytes of the body; 0 at its end. Errors: UNAVAILABLE if the connection breaks.
  absl::StatusOr<size_t> Read(std::span<char> buffer);

 private:
  friend class Http;
  HttpAnswer(LuthierHttpAnswer* handle, int status) : handle_(handle), status_(status) {}
  LuthierHttpAnswer* handle_;
  int status_;
};

// Connections, which are kept between requests. Thread-safe.
class Http {
 public:
  // `idle_timeout`: how long a server may say nothing. Errors: FAILED_PRECONDITION if the system has no certificates.
  static absl::StatusOr<std::unique_ptr<Http>> Open(absl::Duration connect_timeout, absl::Duration idle_timeout);
  ~Http();

  // The bytes from `offset` on, of which the server may also send all (status 200 instead of 206). Follows redirects,
  // but none from https to http. `token`, if it is not empty, goes to the origin of `url` and nowhere else. No message
  // repeats either. Errors: UNAVAILABLE if the connection breaks; FAILED_PRECONDITION for an address or a redirect that
  // cannot be used.
  absl::StatusOr<HttpAnswer> Get(const std::string& url, const std::string& token, int64_t offset) const;

 private:
  explicit Http(LuthierHttp* handle) : handle_(handle) {}
  LuthierHttp* const handle_;
};

}  // namespace luthier
