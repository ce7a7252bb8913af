#include "lib/artifact/bucket.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/artifact/bucket_api.h"

namespace luthier {
namespace {

// S3 and Google take parts of 5 MB to 5 GB, and 10,000 of them; Azure more and larger ones.
constexpr int64_t kPartBytes = int64_t{8} << 20;
constexpr int64_t kMostParts = 9'000;
// Of what a server answers; the rest is XML that repeats it.
constexpr size_t kMaxDetail = 600;

// What luthierd's environment says about a cloud, for messages.
struct Cloud {
  absl::string_view scheme;
  absl::string_view credentials;
  absl::string_view place;
};
constexpr std::array kClouds = {
    Cloud{"s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_REGION, AWS_ENDPOINT_URL"},
    Cloud{"az", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
          "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT"},
    Cloud{"gs", "GOOGLE_APPLICATION_CREDENTIALS (a service account's key file)", "GOOGLE_BASE_URL"},
};

// Null if there is none.
const Cloud* CloudOf(absl::string_view address) {
  const auto* const found = std::find_if(kClouds.begin(), kClouds.end(), [&](const Cloud& cloud) {
    return absl::StartsWith(address, absl::StrCat(cloud.scheme, "://"));
  });
  return found == kClouds.end() ? nullptr : &*found;
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  if (text.size() > kMaxDetail) text = text.substr(0, kMaxDetail) + "…";
  return text;
}

absl::Status ErrorOf(int code, absl::string_view address, absl::string_view key, LuthierBuffer error) {
  const std::string where = absl::StrCat(address, "/", key);
  const std::string detail = OneLine(TakeText(error));
  const Cloud& cloud = *CloudOf(address);
  switch (code) {
    case kLuthierNotFound: return absl::NotFoundError(absl::StrCat(where, ": does not exist"));
    case kLuthierExists: return absl::AlreadyExistsError(absl::StrCat(where, ": exists"));
    case kLuthierDenied:
      return absl::UnavailableError(
          absl::StrCat(where, ": access is denied; give luthierd's environment ", cloud.credentials,
                       ", or its machine a role, that may get, put, list and delete there: ", detail));
    default:
      return absl::UnavailableError(
          absl::StrCat(where, ": the bucket does not answer as it should; check the network, and ", cloud.place,
                       " and the credentials of luthierd's environment: ", detail));
  }
}

// Of a call that writes, for which only the bucket itself can be missing.
absl::Status WriteErrorOf(int code, absl::string_view address, absl::string_view key, LuthierBuffer error) {
  if (code != kLuthierNotFound) return ErrorOf(code, address, key, error);
  luthier_buffer_free(error);
  return absl::UnavailableError(absl::StrCat(address, ": the bucket does not exist; make it, or name another"));
}

bool IsPlain(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bucket>> Bucket::Open(const std::string& address, const Options& options) {
  const std::string given(absl::StripSuffix(address, "/"));
  const Cloud* const cloud = CloudOf(given);
  const absl::string_view rest = absl::string_view(given).substr(cloud == nullptr ? 0 : cloud->scheme.size() + 3);
  const std::vector<absl::string_view> names = absl::StrSplit(rest, '/');
  if (cloud == nullptr || !std::all_of(names.begin(), names.end(), IsPlain)) {
    // Not repeated: somebody may have put a key into it.
    return absl::InvalidArgumentError(
        "is no bucket; give s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX of letters, digits, '-', "
        "'.' and '_', without credentials, which belong in the environment");
  }
  const absl::string_view name = names[0];
  const absl::string_view prefix = absl::StripPrefix(rest.substr(name.size()), "/");
  const LuthierBucketOptions limits = {
      .max_retries = static_cast<uint32_t>(options.max_retries),
      .retry_timeout_ms = static_cast<uint64_t>(absl::ToInt64Milliseconds(options.retry_timeout)),
      .request_timeout_ms = static_cast<uint64_t>(absl::ToInt64Milliseconds(options.request_timeout))};
  LuthierBucket* handle = nullptr;
  LuthierBuffer error{};
  if (luthier_bucket_open(cloud->scheme.data(), cloud->scheme.size(), name.data(), name.size(), prefix.data(),
                          prefix.size(), &limits, &handle, &error) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(given, " cannot be used; check ", cloud->place, " and ",
                                                   cloud->credentials,
                                                   " of luthierd's environment: ", OneLine(TakeText(error))));
  }
  return std::unique_ptr<Bucket>(new Bucket(given, handle));
}

Bucket::~Bucket() { luthier_bucket_free(handle_); }

absl::Status Bucket::PutNew(const std::string& key, absl::string_view text) const {
  LuthierBuffer error{};
  const int code = luthier_bucket_put_new(handle_, key.data(), key.size(), text.data(), text.size(), &error);
  return code == 0 ? absl::OkStatus() : WriteErrorOf(code, address_, key, error);
}

absl::StatusOr<Bucket::Facts> Bucket::Stat(const std::string& key) const {
  int64_t bytes = 0, modified = 0;
  LuthierBuffer error{};
  const int code = luthier_bucket_stat(handle_, key.data(), key.size(), &bytes, &modified, &error);
  if (code != 0) return ErrorOf(code, address_, key, error);
  return Facts{bytes, absl::FromUnixSeconds(modified)};
}

absl::Status Bucket::Read(const std::string& key, int64_t offset, std::span<char> buffer) const {
  if (buffer.empty()) return absl::OkStatus();
  LuthierBuffer error{};
  const int code = luthier_bucket_read(handle_, key.data(), key.size(), static_cast<uint64_t>(offset), buffer.data(),
                                       buffer.size(), &error);
  return code == 0 ? absl::OkStatus() : ErrorOf(code, address_, key, error);
}

absl::Status Bucket::Delete(const std::string& key) const {
  LuthierBuffer error{};
  const int code = luthier_bucket_delete(handle_, key.data(), key.size(), &error);
  return code == 0 ? absl::OkStatus() : ErrorOf(code, address_, key, error);
}

absl::Status Bucket::List(const std::string& folder,
                          const std::function<void(const std::string& key, const Facts&)>& each) const {
  const auto call = [](void* context, const char* key, size_t key_len, int64_t size, int64_t modified) {
    const auto& function = *static_cast<const std::function<void(const std::string&, const Facts&)>*>(context);
    function(std::string(key, key_len), Facts{size, absl::FromUnixSeconds(modified)});
  };
  LuthierBuffer error{};
  void* context = const_cast<void*>(static_cast<const void*>(&each));
  const int code = luthier_bucket_list(handle_, folder.data(), folder.size(), call, context, &error);
  return code == 0 ? absl::OkStatus() : ErrorOf(code, address_, folder, error);
}

absl::StatusOr<std::string> Bucket::Sign(const std::string& key, absl::Duration lifetime) const {
  LuthierBuffer url{}, error{};
  const auto lifetime_ms = static_cast<uint64_t>(absl::ToInt64Milliseconds(lifetime));
  if (luthier_bucket_sign(handle_, key.data(), key.size(), lifetime_ms, &url, &error) == 0) return TakeText(url);
  return absl::FailedPreconditionError(absl::StrCat(
      address_, ": the credentials of luthierd's environment sign no URLs; download through the server, or give it ",
      CloudOf(address_)->credentials, ": ", OneLine(TakeText(error))));
}

absl::StatusOr<std::unique_ptr<Bucket::Upload>> Bucket::Put(const std::string& key, int64_t bytes) const {
  const int64_t part_bytes = std::max(kPartBytes, bytes / kMostParts);
  LuthierUpload* handle = nullptr;
  LuthierBuffer error{};
  const int code =
      luthier_upload_new(handle_, key.data(), key.size(), static_cast<size_t>(part_bytes), &handle, &error);
  if (code != 0) return ErrorOf(code, address_, key, error);
  return std::unique_ptr<Upload>(new Upload(*this, key, handle));
}

Bucket::Upload::~Upload() {
  LuthierBuffer error{};
  // Parts that cannot be removed now stay until the bucket's own rule for unfinished uploads takes them.
  if (luthier_upload_free(handle_, &error) != 0) luthier_buffer_free(error);
}

absl::Status Bucket::Upload::Append(absl::string_view bytes) {
  LuthierBuffer error{};
  const int code = luthier_upload_write(handle_, bytes.data(), bytes.size(), &error);
  return code == 0 ? absl::OkStatus() : WriteErrorOf(code, bucket_.address_, key_, error);
}

absl::Status Bucket::Upload::Complete() {
  LuthierBuffer error{};
  const int code = luthier_upload_complete(handle_, &error);
  return code == 0 ? absl::OkStatus() : WriteErrorOf(code, bucket_.address_, key_, error);
}

}  // namespace luthier
