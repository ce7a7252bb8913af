#include "client/hub/hub.h"

#include <algorithm>
#include <filesystem>
#include <span>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/hub/git_blob.h"
#include "client/lib/local_disk.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

constexpr size_t kBufferBytes = size_t{256} << 10;
// A repository has some tens of files, with their facts some tens of kilobytes.
constexpr size_t kMaxListing = size_t{32} << 20;
// An endpoint that hangs up after less has not got us on: one that sends a byte at a time, or begins anew each time,
// would be asked for ever.
constexpr int64_t kProgress = int64_t{1} << 20;

// As a part of a URL's path; a slash stays only if it is in `kept`.
std::string PercentEncoded(absl::string_view text, absl::string_view kept) {
  std::string encoded;
  for (const char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("-._~", c) ||
        absl::StrContains(kept, c)) {
      encoded.push_back(c);
    } else {
      absl::StrAppend(&encoded, "%", absl::BytesToHexString(absl::string_view(&c, 1)));
    }
  }
  return encoded;
}

// Of `bytes BEGIN-END/TOTAL`.
struct ContentRange {
  int64_t begin = -1;
  int64_t total = -1;
};

ContentRange ParseContentRange(absl::string_view text) {
  ContentRange range;
  const std::vector<absl::string_view> parts = absl::StrSplit(absl::StripPrefix(text, "bytes "), absl::ByAnyChar("-/"));
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &range.begin) || !absl::SimpleAtoi(parts[2], &range.total))
    return {};
  return range;
}

// That the answer brings `wanted` from `offset` on, as far as its headers say.
absl::Status CheckSizes(const HttpAnswer& answer, const HubFile& wanted, int64_t offset) {
  if (answer.status() == 416)
    return absl::DataLossError(
        absl::StrCat(wanted.path, " has no byte ", offset, ", and is listed with ", wanted.bytes));
  if (answer.status() == 206) {
    const ContentRange range = ParseContentRange(answer.Header("Content-Range"));
    if (range.begin == offset && range.total == wanted.bytes) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(wanted.path, " comes from byte ", range.begin, " of ", range.total,
                                            ", and should from ", offset, " of ", wanted.bytes));
  }
  int64_t bytes = wanted.bytes;
  if (absl::SimpleAtoi(answer.Header("Content-Length"), &bytes) && bytes != wanted.bytes) {
    return absl::DataLossError(
        absl::StrCat(wanted.path, " comes with ", bytes, " bytes, and is listed with ", wanted.bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckBlobId(const std::string& path, const HubFile& file) {
  if (file.blob_id.empty()) return absl::OkStatus();
  LUTHIER_ASSIGN_OR_RETURN(const std::string found, GitBlobIdOfFile(path, file.bytes));
  if (found == file.blob_id) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, ": content is Git's blob ", found, ", expected ", file.blob_id));
}

// Makes what was received durable if it is what was wanted; else it is emptied. Errors: DATA_LOSS.
absl::Status Verify(ResumableFile& received, const std::string& path, const HubFile& wanted) {
  if (!wanted.sha256.empty()) return received.Verify(wanted.sha256);
  LUTHIER_RETURN_IF_ERROR(received.Flush());
  const absl::Status right = CheckBlobId(path, wanted);
  if (absl::IsDataLoss(right)) LUTHIER_RETURN_IF_ERROR(received.Clear());
  return right;
}

absl::Status ReadAll(HttpAnswer& answer, std::string& text) {
  text.clear();
  std::vector<char> buffer(kBufferBytes);
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const size_t count, answer.Read(std::span<char>(buffer)));
    if (count == 0) return absl::OkStatus();
    text.append(buffer.data(), count);
    if (text.size() > kMaxListing) {
      return absl::DataLossError(absl::StrCat("its list of files is longer than ", kMaxListing >> 20,
                                              " MiB; is HF_ENDPOINT the hub, or a mirror of it?"));
    }
  }
}

absl::Status Prefixed(const std::string& prefix, const absl::Status& status) {
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(prefix, ": ", status.message()));
}

}  // namespace

absl::Duration AskedWait(const std::string& retry_after, const std::string& rate_limit) {
  int64_t seconds = 0;
  if (absl::SimpleAtoi(retry_after, &seconds) && seconds > 0) return absl::Seconds(seconds);
  for (absl::string_view part : absl::StrSplit(rate_limit, ';')) {
    part = absl::StripAsciiWhitespace(part);
    if (absl::ConsumePrefix(&part, "t=") && absl::SimpleAtoi(part, &seconds) && seconds > 0)
      return absl::Seconds(seconds);
  }
  return absl::ZeroDuration();
}

absl::Status InCache(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(OnOurDisk(status).code(),
                      absl::StrCat(status.message(), "; LUTHIER_CACHE_DIR names another folder"));
}

absl::Status CheckContent(const std::string& path, const HubFile& file) {
  std::error_code error;
  if (std::filesystem::symlink_status(path, error).type() != std::filesystem::file_type::regular ||
      std::filesystem::file_size(path, error) != static_cast<uintmax_t>(file.bytes))
    return absl::DataLossError(absl::StrCat(path, " is no file of ", file.bytes, " bytes"));
  if (file.sha256.empty()) return CheckBlobId(path, file);
  LUTHIER_ASSIGN_OR_RETURN(const std::string found, Sha256OfFile(path));
  return found == file.sha256 ? absl::OkStatus() : absl::DataLossError(absl::StrCat(path, " has other content"));
}

absl::StatusOr<std::unique_ptr<Hub>> Hub::Open(Options options) {
  absl::StatusOr<std::unique_ptr<Http>> http = Http::Open(options.connect_timeout, options.idle_timeout);
  if (http.ok()) return std::unique_ptr<Hub>(new Hub(std::move(options), *std::move(http)));
  return absl::FailedPreconditionError(absl::StrCat("nothing can be downloaded here: ", http.status().message(),
                                                    "; are there certificates (ca-certificates, or SSL_CERT_FILE)?"));
}

absl::Status Hub::Retry(const std::function<absl::Status(Attempt&)>& make) const {
  for (int failures = 1;; ++failures) {
    Attempt attempt;
    absl::Status status = make(attempt);
    if (!absl::IsUnavailable(status)) return status;
    if (attempt.got_on) failures = 1;
    if (failures >= options_.retry.attempts || attempt.asked_wait > options_.longest_wait) return status;
    if (attempt.asked_wait > absl::ZeroDuration()) options_.on_wait(attempt.asked_wait);
    absl::SleepFor(std::max(attempt.asked_wait, RetryPause(options_.retry, failures, RandomFraction())));
  }
}

absl::StatusOr<HttpAnswer> Hub::Get(const HubAddress& address, const std::string& target, int64_t offset,
                                    Attempt& attempt) const {
  absl::StatusOr<HttpAnswer> answer = http_->Get(absl::StrCat(options_.endpoint, target), options_.token, offset);
  if (absl::IsUnavailable(answer.status())) {
    return absl::UnavailableError(
        absl::StrCat(address.Text(), ": no answer from ", options_.endpoint,
                     " (check the network, HF_ENDPOINT and HTTPS_PROXY): ", answer.status().message()));
  }
  if (!answer.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(address.Text(), ": ", options_.endpoint,
                                                      " is of no use: ", answer.status().message(),
                                                      "; is HF_ENDPOINT the hub, or a mirror of it?"));
  }
  const int status = answer->status();
  if (status == 200 || (offset > 0 && (status == 206 || status == 416))) return answer;
  return Refusal(address, *answer, attempt);
}

absl::Status Hub::Refusal(const HubAddress& address, const HttpAnswer& answer, Attempt& attempt) const {
  const int status = answer.status();
  const std::string code = answer.Header("X-Error-Code");
  const std::string name = address.Text(), page = absl::StrCat(options_.endpoint, "/", address.repository);
  const bool has_token = !options_.token.empty();
  if (status == 429) {
    attempt.asked_wait = AskedWait(answer.Header("Retry-After"), answer.Header("RateLimit"));
    return absl::UnavailableError(absl::StrCat(
        name, ": ", options_.endpoint, " has had too many requests (status 429); try again ",
        attempt.asked_wait > absl::ZeroDuration() ? absl::StrCat("in ", absl::FormatDuration(attempt.asked_wait))
                                                  : "later",
        has_token ? "" : ", or set HF_TOKEN, with which it takes more"));
  }
  if (status == 408 || status >= 500) {
    attempt.asked_wait = AskedWait(answer.Header("Retry-After"), "");
    return absl::UnavailableError(
        absl::StrCat(name, ": ", options_.endpoint, " cannot serve now (status ", status, "); try again later"));
  }
  if (code == "GatedRepo") {
    return absl::PermissionDeniedError(absl::StrCat(name, " is gated: accept its licence at ", page,
                                                    ", and set HF_TOKEN to a token of that account that may read it",
                                                    has_token ? " (the present one may not)" : ""));
  }
  // The hub does not say which of these it is, so that nobody learns what is private.
  if (status == 401 && !has_token) {
    return absl::UnauthenticatedError(absl::StrCat(
        name, ": ", page,
        " is shown to nobody without a token: check the name, and if it is private or gated set HF_TOKEN"));
  }
  if (status == 401) {
    return absl::UnauthenticatedError(absl::StrCat(name, ": ", options_.endpoint, " does not take the token for ", page,
                                                   "; check the name, and set HF_TOKEN to one from ", options_.endpoint,
                                                   "/settings/tokens that may read it"));
  }
  if (status == 403)
    return absl::PermissionDeniedError(absl::StrCat(name, ": ",
                                                    has_token ? "the token may not" : "nobody without a token may",
                                                    " read ", page, " (status 403); set HF_TOKEN to one that may"));
  if (status == 404 && code == "RevisionNotFound") {
    return absl::NotFoundError(absl::StrCat(name, ": the repository has no revision '", address.revision,
                                            "'; give a branch, a tag or a commit that ", page, " has"));
  }
  if (status == 404 && code == "EntryNotFound")
    return absl::NotFoundError(absl::StrCat(name, ": ", page, " lists a file that it has not"));
  if (status == 404) return absl::NotFoundError(absl::StrCat(name, ": ", page, " is not there; check the name"));
  return absl::FailedPreconditionError(absl::StrCat(name, ": ", options_.endpoint, " answers with status ", status,
                                                    "; is HF_ENDPOINT the hub, or a mirror of it?"));
}

absl::StatusOr<HubListing> Hub::List(const HubAddress& address) const {
  const std::string target = absl::StrCat("/api/models/", address.repository, "/revision/",
                                          PercentEncoded(address.revision, ""), "?blobs=true");
  std::string text;
  LUTHIER_RETURN_IF_ERROR(Retry([&](Attempt& attempt) -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(HttpAnswer answer, Get(address, target, 0, attempt));
    return Prefixed(address.Text(), ReadAll(answer, text));
  }));
  absl::StatusOr<HubListing> listing = ParseHubListing(text);
  if (listing.ok()) return listing;
  return absl::DataLossError(absl::StrCat(address.Text(), ": the list of files of ", options_.endpoint,
                                          " is of no use: ", listing.status().message(),
                                          "; is HF_ENDPOINT the hub, or a mirror of it?"));
}

absl::Status Hub::FetchOnce(const HubAddress& address, const std::string& target, const HubFile& wanted,
                            ResumableFile& file, const std::function<void(int64_t)>& on_received,
                            Attempt& attempt) const {
  LUTHIER_ASSIGN_OR_RETURN(HttpAnswer answer, Get(address, target, file.size(), attempt));
  if (answer.status() == 200 && file.size() > 0) {  // who answers knows no ranges
    on_received(-file.size());
    LUTHIER_RETURN_IF_ERROR(InCache(file.Clear()));
  }
  LUTHIER_RETURN_IF_ERROR(Prefixed(address.Text(), CheckSizes(answer, wanted, file.size())));
  std::vector<char> buffer(kBufferBytes);
  while (true) {
    const absl::StatusOr<size_t> count = answer.Read(std::span<char>(buffer));
    if (!count.ok() || *count == 0) {
      if (count.ok() && file.size() == wanted.bytes) return absl::OkStatus();
      return absl::UnavailableError(absl::StrCat(address.Text(), ": ", wanted.path, " ended after ", file.size(),
                                                 " of ", wanted.bytes, " bytes; the same command goes on from there",
                                                 count.ok() ? "" : absl::StrCat(": ", count.status().message())));
    }
    if (file.size() + static_cast<int64_t>(*count) > wanted.bytes) {
      return absl::DataLossError(
          absl::StrCat(address.Text(), ": ", wanted.path, " goes on after the ", wanted.bytes, " bytes of its list"));
    }
    LUTHIER_RETURN_IF_ERROR(InCache(file.Append({buffer.data(), *count})));
    on_received(static_cast<int64_t>(*count));
  }
}

absl::Status Hub::Fetch(const HubAddress& address, const std::string& commit, const HubFile& wanted,
                        const std::string& path, const std::function<void(int64_t)>& on_received) const {
  const std::string target =
      absl::StrCat("/", address.repository, "/resolve/", commit, "/", PercentEncoded(wanted.path, "/"));
  absl::StatusOr<ResumableFile> opened = ResumableFile::Open(path, wanted.bytes);
  if (!opened.ok()) return InCache(opened.status());
  ResumableFile& file = *opened;
  on_received(file.size());
  int64_t furthest = file.size();
  for (bool again = false;; again = true) {
    LUTHIER_RETURN_IF_ERROR(Retry([&](Attempt& attempt) {
      if (file.size() == wanted.bytes) return absl::OkStatus();
      absl::Status fetched = FetchOnce(address, target, wanted, file, on_received, attempt);
      attempt.got_on = file.size() >= furthest + kProgress;
      if (attempt.got_on) furthest = file.size();
      return fetched;
    }));
    const absl::Status right = Verify(file, path, wanted);
    // A file that was not right is empty now. What else fails is our own disk, and a failed fsync is never tried again.
    if (!absl::IsDataLoss(right) || file.size() > 0) return InCache(right);
    // Bytes of an earlier try may have been of another file, or damaged on our disk: once more from the start.
    on_received(-wanted.bytes);
    if (again) return Prefixed(address.Text(), right);
  }
}

}  // namespace luthier
