// Blobs whose bytes may have changed on the way, or where they lie.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "lib/artifact/artifact_store.h"
#include "lib/artifact/hash.h"

namespace luthier {

// Whether what was received is what was announced. Errors: INVALID_ARGUMENT.
absl::Status CheckReceived(const std::string& found, const std::string& expected, int64_t bytes);

// Hashes what is read, and refuses the end of what does not have its hash.
class CheckedReader : public BlobReader {
 public:
  // `place`: where the blob lies, for the message.
  CheckedReader(std::string sha256, int64_t size, std::string place)
      : sha256_(std::move(sha256)), place_(std::move(place)), size_(size) {}

  absl::StatusOr<size_t> Read(std::span<char> buffer) final;
  int64_t size() const final { return size_; }

  // Goes on as if the first `bytes` had been read, of which this is the hash. Requires: nothing was read yet.
  void Begin(int64_t bytes, Sha256 hash);
  // Reads and hashes all up to `offset`.
  absl::Status SkipTo(int64_t offset);

 protected:
  // Of what was read so far. Not at the end.
  const Sha256& hash() const { return hash_; }
  const std::string& sha256() const { return sha256_; }

 private:
  // Reads up to `buffer.size()` bytes, of which there is one, from `position` on; 0 at the end.
  virtual absl::StatusOr<size_t> ReadSome(int64_t position, std::span<char> buffer) = 0;

  const std::string sha256_, place_;
  const int64_t size_;
  int64_t position_ = 0;
  bool checked_ = false;
  bool intact_ = false;
  Sha256 hash_;
};

}  // namespace luthier
