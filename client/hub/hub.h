// The Hugging Face hub, or a mirror of it, over its HTTP API (huggingface.co/docs/hub/api).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/hub/address.h"
#include "client/hub/http.h"
#include "client/hub/listing.h"
#include "client/lib/resumable_file.h"
#include "client/lib/retry.h"

namespace luthier {

// Calls block. What fails with a 429, a 5xx or the connection is tried again, as often in a row as the policy says. One
// thread. Errors of all, naming the address: UNAVAILABLE for what may pass; NOT_FOUND; PERMISSION_DENIED or
// UNAUTHENTICATED with the remedy; DATA_LOSS for an endpoint that contradicts itself. None repeats the token.
class Hub {
 public:
  struct Options {
    std::string endpoint = "https://huggingface.co";  // without a slash at its end
    std::string token;                                // empty: none
    // About 8 s in all: whoever is not online is told soon.
    RetryPolicy retry = {.attempts = 5, .initial_pause = absl::Milliseconds(500), .longest_pause = absl::Seconds(10)};
    // What an endpoint may ask to wait for; the hub's windows are of five minutes
    // (huggingface.co/docs/hub/rate-limits).
    absl::Duration longest_wait = absl::Minutes(6);
    absl::Duration connect_timeout = absl::Seconds(20);
    absl::Duration idle_timeout = absl::Minutes(1);  // without a byte; then the connection counts as broken
    // Hears of waits that the endpoint asked for.
    std::function<void(absl::Duration)> on_wait = [](absl::Duration) {};
  };
  // Contacts nobody. Errors: FAILED_PRECONDITION.
  static absl::StatusOr<std::unique_ptr<Hub>> Open(Options options);

  absl::StatusOr<HubListing> List(const HubAddress& address) const;
  // Brings a file of the commit that was listed to `path`, from where an earlier try broke; `path` holds it, durably
  // and verified, once this succeeds. `on_received` hears of bytes that are there, and of bytes that were not right
  // after all (negative). Errors: also those of the local disk, as InCache() gives them.
  absl::Status Fetch(const HubAddress& address, const std::string& commit, const HubFile& file, const std::string& path,
                     const std::function<void(int64_t)>& on_received) const;

 private:
  struct Attempt {
    bool got_on = false;                               // far enough that the failures before do not count
    absl::Duration asked_wait = absl::ZeroDuration();  // by the endpoint
  };
  Hub(Options options, std::unique_ptr<Http> http) : options_(std::move(options)), http_(std::move(http)) {}
  absl::Status Retry(const std::function<absl::Status(Attempt&)>& attempt) const;
  // An answer of status 200 or 206, or 416 if `offset` is not 0.
  absl::StatusOr<HttpAnswer> Get(const HubAddress& address, const std::string& target, int64_t offset,
                                 Attempt& attempt) const;
  absl::Status Refusal(const HubAddress& address, const HttpAnswer& answer, Attempt& attempt) const;
  absl::Status FetchOnce(const HubAddress& address, const std::string& target, const HubFile& wanted,
                         ResumableFile& file, const std::function<void(int64_t)>& on_received, Attempt& attempt) const;

  const Options options_;
  const std::unique_ptr<Http> http_;
};

// As OnOurDisk(), of a folder in the cache: with the remedy.
absl::Status InCache(const absl::Status& status);

// Whether `path` holds the file. Errors: DATA_LOSS if it does not; those of reading it.
absl::Status CheckContent(const std::string& path, const HubFile& file);

// How long the endpoint asks to wait: Retry-After in seconds, or `t` of the hub's RateLimit
// (huggingface.co/docs/hub/rate-limits); zero if it says nothing.
absl::Duration AskedWait(const std::string& retry_after, const std::string& rate_limit);

}  // namespace luthier
