#include "lib/artifact/bucket_artifact_store.h"

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

class BucketBlobReader : public CheckedReader {
 public:
  // `beginnings`: which are told of what was read; null: none.
  BucketBlobReader(const Bucket& bucket, std::string key, std::string sha256, int64_t size, BlobBeginnings* beginnings)
      : CheckedReader(std::move(sha256), size, absl::StrCat(bucket.address(), "/", key)),
        bucket_(bucket),
        key_(std::move(key)),
        beginnings_(beginnings) {}

 private:
  absl::StatusOr<size_t> ReadSome(int64_t position, std::span<char> buffer) override {
    if (position >= size()) return 0;
    const auto end = begin_ + static_cast<int64_t>(piece_.size());
    if (position < begin_ || position >= end) {
      if (beginnings_ != nullptr) beginnings_->Put(sha256(), position, hash());
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
  BlobBeginnings* const beginnings_;
  std::string piece_;
  int64_t begin_ = 0;  // of the piece
};

// Reads all of it. Errors: DATA_LOSS; UNAVAILABLE.
absl::Status CheckObject(const Bucket& bucket, const std::string& key, const std::string& sha256, int64_t size) {
  BucketBlobReader reader(bucket, key, sha256, size, nullptr);
  std::vector<char> buffer(size_t{1} << 20);
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const size_t count, reader.Read(std::span<char>(buffer)));
    if (count == 0) return absl::OkStatus();
  }
}

class BucketBlobWriter : public BlobWriter {
 public:
  BucketBlobWriter(const Bucket& bucket, std::string key, std::unique_ptr<Bucket::Upload> upload, std::string sha256,
                   BlobPins* pins)
      : bucket_(bucket), key_(std::move(key)), upload_(std::move(upload)), sha256_(std::move(sha256)), pins_(pins) {}

  absl::Status Append(absl::string_view bytes) override {
    hash_.Update(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
    return upload_->Append(bytes);
  }

  absl::Status Commit() override {
    LUTHIER_RETURN_IF_ERROR(CheckReceived(hash_.FinishHex(), sha256_, bytes_));
    if (pins_ != nullptr) pins_->Add(sha256_);  // before the object appears
    const absl::Status stored = upload_->Complete();
    if (!absl::IsAlreadyExists(stored)) return stored;
    // The same name is the same content.
    const absl::Status found = CheckObject(bucket_, key_, sha256_, bytes_);
    if (!absl::IsNotFound(found)) return found;
    return absl::UnavailableError(
        absl::StrCat(bucket_.address(), "/", key_,
                     ": the bucket gave the upload up before it was complete; if that happens again, let its rule for "
                     "unfinished uploads wait longer"));
  }

  int64_t bytes() const override { return bytes_; }

 private:
  const Bucket& bucket_;
  const std::string key_;
  const std::unique_ptr<Bucket::Upload> upload_;
  const std::string sha256_;
  BlobPins* pins_;
  Sha256 hash_;
  int64_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BucketArtifactStore>> BucketArtifactStore::Open(Options options,
                                                                               const std::string& owner) {
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
  return std::unique_ptr<BucketArtifactStore>(new BucketArtifactStore(std::move(bucket), std::move(cache)));
}

absl::StatusOr<std::unique_ptr<BucketArtifactStore>> BucketArtifactStore::OpenToRead(const Options& options) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Bucket> bucket, Bucket::Open(options.address, options.bucket));
  return std::unique_ptr<BucketArtifactStore>(new BucketArtifactStore(std::move(bucket), nullptr));
}

absl::StatusOr<std::string> BucketArtifactStore::OwnerOf(const Options& options) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Bucket> bucket, Bucket::Open(options.address, options.bucket));
  return ReadObject(*bucket, kOwner);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> BucketArtifactStore::PutBlob(const std::string& sha256,
                                                                         int64_t expected_bytes, BlobPins* pins) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Bucket::Upload> upload, bucket_->Put(path, expected_bytes));
  return std::make_unique<BucketBlobWriter>(*bucket_, path, std::move(upload), sha256, pins);
}

absl::StatusOr<std::unique_ptr<BlobReader>> BucketArtifactStore::OpenBlob(absl::string_view sha256, int64_t offset) {
  LUTHIER_ASSIGN_OR_RETURN(std::string path, PathOfBlob(sha256));
  LUTHIER_ASSIGN_OR_RETURN(const int64_t size, BlobSize(sha256));
  if (offset < 0 || offset > size)
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of a blob of ", size, " bytes"));
  const std::string name(sha256);
  auto reader = std::make_unique<BucketBlobReader>(*bucket_, std::move(path), name, size, &beginnings_);
  BlobBeginnings::Beginning known = beginnings_.Longest(name, offset);
  reader->Begin(known.bytes, std::move(known.hash));
  LUTHIER_RETURN_IF_ERROR(reader->SkipTo(offset));
  return reader;
}

absl::StatusOr<LocalBlob> BucketArtifactStore::MakeLocal(const std::string& sha256) {
  if (cache_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(Address(), " was opened to read only"));
  return cache_->Get(*this, sha256);
}

absl::StatusOr<std::string> BucketArtifactStore::SignBlob(absl::string_view sha256, absl::Duration lifetime) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  return bucket_->Sign(path, lifetime);
}

absl::StatusOr<ArtifactStore::File> BucketArtifactStore::Stat(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const Bucket::Facts facts, bucket_->Stat(path));
  return File{path, facts.bytes, facts.time};
}

absl::StatusOr<std::string> BucketArtifactStore::ReadText(const std::string& path) {
  return ReadObject(*bucket_, path);
}

absl::Status BucketArtifactStore::WriteNew(const std::string& path, const std::string& text) {
  return bucket_->PutNew(path, text);
}

absl::Status BucketArtifactStore::Remove(const std::string& path) { return bucket_->Delete(path); }

absl::StatusOr<std::vector<ArtifactStore::File>> BucketArtifactStore::List(const std::string& folder) {
  std::vector<File> files;
  LUTHIER_RETURN_IF_ERROR(bucket_->List(folder, [&](const std::string& key, const Bucket::Facts& facts) {
    files.push_back({key, facts.bytes, facts.time});
  }));
  return files;
}

}  // namespace luthier
