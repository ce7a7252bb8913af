// Objects of a bucket of S3, Azure or Google Cloud Storage, through the Rust crate `object_store`: retries, multipart
// uploads, conditional puts, signed URLs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct LuthierBucket;
struct LuthierUpload;

namespace luthier {

// A bucket, or what lies in it beneath a prefix. Every call blocks while it tries again, for minutes where the bucket
// cannot be reached: none belongs on a thread that others wait for. Thread-safe.
//
// Errors of all of them: UNAVAILABLE with address, key and remedy, for what may pass, wrong credentials included.
class Bucket {
 public:
  struct Options {
    // What fails with a 5xx, a 429 or the connection is tried again with a growing pause, as often and for as long as
    // this.
    int max_retries = 8;
    absl::Duration retry_timeout = absl::Minutes(2);
    absl::Duration request_timeout = absl::Minutes(1);  // of one try, answer included
  };
  struct Facts {
    int64_t bytes = 0;
    absl::Time time;  // of its last change, to the second
  };

  // An object being written. It appears with Complete(), whole, or never: what was sent of it is removed. One thread.
  class Upload {
   public:
    ~Upload();
    absl::Status Append(absl::string_view bytes);
    // Errors: ALREADY_EXISTS if the bucket no longer has the parts, since an earlier try of this upload, or (Azure)
    // another one of the same object, was completed meanwhile; or because it gave the upload up.
    absl::Status Complete();

   private:
    friend class Bucket;
    Upload(const Bucket& bucket, std::string key, LuthierUpload* handle)
        : bucket_(bucket), key_(std::move(key)), handle_(handle) {}
    const Bucket& bucket_;
    const std::string key_;
    LuthierUpload* const handle_;
  };

  // `address`: `s3://bucket`, `az://container` or `gs://bucket`, with or without `/prefix`. Endpoint, region, account
  // and credentials come from the environment (`AWS_…`, `AZURE_…`, `GOOGLE_…`) or the machine's role, and (Google) from
  // where `gcloud` leaves a user's; plain HTTP is used only if the endpoint says so. Contacts nobody. Errors:
  // INVALID_ARGUMENT for the address, or for what the environment says.
  static absl::StatusOr<std::unique_ptr<Bucket>> Open(const std::string& address, const Options& options);
  ~Bucket();

  const std::string& address() const { return address_; }

  // Stores a small object of UTF-8. Errors: ALREADY_EXISTS if the key has one; it is not replaced.
  absl::Status PutNew(const std::string& key, absl::string_view text) const;
  // Errors: NOT_FOUND.
  absl::StatusOr<Facts> Stat(const std::string& key) const;
  absl::Status Read(const std::string& key, int64_t offset, std::span<char> buffer) const;
  // Succeeds if there is none.
  absl::Status Delete(const std::string& key) const;
  // All whose key begins with `folder` and a slash, in the bucket's order.
  absl::Status List(const std::string& folder,
                    const std::function<void(const std::string& key, const Facts&)>& each) const;
  // A URL with which whoever has it may get the object until `lifetime` is over, or the credentials are, if they are
  // for a time only. Whether there is such an object is not looked at. Errors: FAILED_PRECONDITION if the credentials
  // cannot sign.
  absl::StatusOr<std::string> Sign(const std::string& key, absl::Duration lifetime) const;
  // `bytes`: how many it will be, at most; decides the size of the parts. The bucket must outlive the upload.
  absl::StatusOr<std::unique_ptr<Upload>> Put(const std::string& key, int64_t bytes) const;

 private:
  Bucket(std::string address, LuthierBucket* handle) : address_(std::move(address)), handle_(handle) {}
  const std::string address_;
  LuthierBucket* const handle_;
};

}  // namespace luthier
