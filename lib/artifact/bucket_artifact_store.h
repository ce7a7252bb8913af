// Artifacts in a bucket of S3, of what speaks its protocol, of Azure or of Google Cloud Storage.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/artifact/artifact_store.h"
#include "lib/artifact/blob_beginnings.h"
#include "lib/artifact/blob_cache.h"
#include "lib/artifact/bucket.h"

namespace luthier {

// Uploads go there in parts as they come, and appear under their hash once that is checked; downloads come in pieces.
// Both hold some MB of memory each. A blob that is needed as a file goes through a cache.
class BucketArtifactStore : public ArtifactStore {
 public:
  struct Options {
    std::string address;  // s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX
    std::string cache;    // folder
    int64_t cache_bytes = int64_t{50} << 30;
    Bucket::Options bucket;
  };
  // Makes the prefix `owner`'s. Errors: INVALID_ARGUMENT for the address; FAILED_PRECONDITION if it is another owner's;
  // UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<BucketArtifactStore>> Open(Options options, const std::string& owner);
  // Whoever owns it, to look only. Nothing becomes local then.
  static absl::StatusOr<std::unique_ptr<BucketArtifactStore>> OpenToRead(const Options& options);
  // Whose the prefix is. Errors: NOT_FOUND if it is nobody's.
  static absl::StatusOr<std::string> OwnerOf(const Options& options);

  std::string Address() const override { return bucket_->address(); }
  absl::StatusOr<std::unique_ptr<BlobWriter>> PutBlob(const std::string& sha256, int64_t expected_bytes,
                                                      BlobPins* pins = nullptr) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(absl::string_view sha256, int64_t offset) override;
  absl::StatusOr<LocalBlob> MakeLocal(const std::string& sha256) override;
  absl::StatusOr<std::string> SignBlob(absl::string_view sha256, absl::Duration lifetime) override;

 private:
  BucketArtifactStore(std::unique_ptr<Bucket> bucket, std::unique_ptr<BlobCache> cache)
      : bucket_(std::move(bucket)), cache_(std::move(cache)) {}
  absl::StatusOr<File> Stat(const std::string& path) override;
  absl::StatusOr<std::string> ReadText(const std::string& path) override;
  absl::Status WriteNew(const std::string& path, const std::string& text) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<File>> List(const std::string& folder) override;

  const std::unique_ptr<Bucket> bucket_;
  const std::unique_ptr<BlobCache> cache_;  // null: opened to read
  BlobBeginnings beginnings_{4096};         // pieces: some 300 bytes each, and 16 GB of what was read last
};

}  // namespace luthier
