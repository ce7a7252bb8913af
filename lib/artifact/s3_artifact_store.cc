#include "lib/artifact/s3_artifact_store.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "lib/artifact/checked_blob.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// One request each: large enough that its answer outweighs its way, small enough that 64 downloads fit into memory.
constexpr int64_t kPieceBytes = int64_t{4} << 20;
constexpr char kOwner[] = "owner";

absl::StatusOr<std::string> ReadObject(const Bucket& bucket, const std::string& key) {
  LUTHIER_ASSIGN_OR_RETURN(const Bucket::Facts facts, bucket.Stat(key));
  std::string text(static_cast<size_t>(facts.bytes), '\0');
  LUTHIER_RETURN_IF_ERROR(bucket.Read(key, 0, std::span<char>(text)));
  return text;
}

class S3BlobWriter : public BlobWriter {
 public:
  S3BlobWriter(std::unique_ptr<Bucket::Upload> upload, std::string sha256, BlobPins* pins)
      : upload_(std::move(upload)), sha256_(std::move(sha256)), pins_(pins) {}

  absl::Status Append(absl::string_view bytes) override {
    hash_.Update(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
    return upload_->Append(bytes);
  }

  absl::Status Commit() override {
    LUTHIER_RETURN_IF_ERROR(CheckReceived(hash_.FinishHex(), sha256_, bytes_));
    if (pins_ != nullptr) pins_->Add(sha256_);  // before the object appears
    return upload_->Complete();
  }

  int64_t bytes() const override { return bytes_; }

 private:
  const std::unique_ptr<Bucket::Upload> upload_;
  const std::string sha256_;
  BlobPins* pins_;
  Sha256 hash_;
  int64_t bytes_ = 0;
};

class S3BlobReader : public CheckedReader {
 public:
  S3BlobReader(const Bucket& bucket, std::string key, std::string sha256, int64_t size)
      : CheckedReader(std::move(sha256), size, absl::StrCat(bucket.address(), "/", key)),
        bucket_(bucket),
        key_(std::move(key)) {}

 private:
  absl::StatusOr<size_t> ReadSome(int64_t position, std::span<char> buffer) override {
    if (position >= size()) return 0;
    const auto end = begin_ + static_cast<int64_t>(piece_.size());
    if (position < begin_ || position >= end) {
      piece_.resize(static_cast<size_t>(std::min(kPieceBytes, size() - position)));
      begin_ = position;
      if (absl::Status status = bucket_.Read(key_, position, std::span<char>(piece_)); !status.ok()) {
        piece_.clear();
        return status;
      }
    }
    const auto from = static_cast<size_t>(position - begin_);
    const size_t count = std::min(buffer.size(), piece_.size() - from);
    std::memcpy(buffer.data(), piece_.data() + from, count);
    return count;
  }

  const Bucket& bucket_;
  const std::string key_;
  std::string piece_;
  int64_t begin_ = 0;  // of the piece
};

}  // namespace

absl::StatusOr<std::unique_ptr<S3ArtifactStore>> S3ArtifactStore::Open(Options options, const std::string& owner) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Bucket> bucket, Bucket::Open(options.address, options.bucket));
  const absl::Status taken = bucket->PutNew(kOwner, owner);
  if (!taken.ok() && !absl::IsAlreadyExists(taken)) return taken;
  if (!taken.ok()) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string found, ReadObject(*bucket, kOwner));
    if (found != owner) {
      return absl::FailedPreconditionError(
          absl::StrCat(bucket->address(),
                       " is another server's, and each removes what its own record does not name; give a prefix of its "
                       "own. `luthierd restore` takes over that of the server whose backup it brings back"));
    }
  }
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<BlobCache> cache, BlobCache::Open(options.cache, options.cache_bytes));
  return std::unique_ptr<S3ArtifactStore>(new S3ArtifactStore(std::move(bucket), std::move(cache)));
}

absl::StatusOr<std::unique_ptr<S3ArtifactStore>> S3ArtifactStore::OpenToRead(const Options& options) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Bucket> bucket, Bucket::Open(options.address, options.bucket));
  return std::unique_ptr<S3ArtifactStore>(new S3ArtifactStore(std::move(bucket), nullptr));
}

absl::StatusOr<std::string> S3ArtifactStore::OwnerOf(const Options& options) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Bucket> bucket, Bucket::Open(options.address, options.bucket));
  return ReadObject(*bucket, kOwner);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> S3ArtifactStore::PutBlob(const std::string& sha256, int64_t expected_bytes,
                                                                     BlobPins* pins) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Bucket::Upload> upload, bucket_->Put(path, expected_bytes));
  return std::make_unique<S3BlobWriter>(std::move(upload), sha256, pins);
}

absl::StatusOr<std::unique_ptr<BlobReader>> S3ArtifactStore::OpenBlob(absl::string_view sha256, int64_t offset) {
  LUTHIER_ASSIGN_OR_RETURN(std::string path, PathOfBlob(sha256));
  LUTHIER_ASSIGN_OR_RETURN(const int64_t size, BlobSize(sha256));
  if (offset < 0 || offset > size)
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of a blob of ", size, " bytes"));
  auto reader = std::make_unique<S3BlobReader>(*bucket_, std::move(path), std::string(sha256), size);
  LUTHIER_RETURN_IF_ERROR(reader->Skip(offset));
  return reader;
}

absl::StatusOr<LocalBlob> S3ArtifactStore::MakeLocal(const std::string& sha256) {
  if (cache_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(Address(), " was opened to read only"));
  return cache_->Get(*this, sha256);
}

absl::StatusOr<ArtifactStore::File> S3ArtifactStore::Stat(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const Bucket::Facts facts, bucket_->Stat(path));
  return File{path, facts.bytes, facts.time};
}

absl::StatusOr<std::string> S3ArtifactStore::ReadText(const std::string& path) { return ReadObject(*bucket_, path); }

absl::Status S3ArtifactStore::WriteNew(const std::string& path, const std::string& text) {
  return bucket_->PutNew(path, text);
}

absl::Status S3ArtifactStore::Remove(const std::string& path) { return bucket_->Delete(path); }

absl::StatusOr<std::vector<ArtifactStore::File>> S3ArtifactStore::List(const std::string& folder) {
  std::vector<File> files;
  LUTHIER_RETURN_IF_ERROR(bucket_->List(folder, [&](const std::string& key, const Bucket::Facts& facts) {
    files.push_back({key, facts.bytes, facts.time});
  }));
  return files;
}

}  // namespace luthier
