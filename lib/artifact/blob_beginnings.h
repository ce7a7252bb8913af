// Hashes of what was read of blobs lately, so that who goes on in the middle of one need not read its beginning again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "lib/artifact/hash.h"

namespace luthier {

// Any thread.
class BlobBeginnings {
 public:
  // Keeps the newest `most`.
  explicit BlobBeginnings(size_t most) : most_(most) {}

  // The first `bytes` of a blob were read, and have this hash.
  void Put(const std::string& sha256, int64_t bytes, const Sha256& hash);

  struct Beginning {
    int64_t bytes = 0;
    Sha256 hash;
  };
  // The longest that is known and has at most so many bytes; of 0 if none is.
  Beginning Longest(const std::string& sha256, int64_t bytes);

 private:
  using Key = std::pair<std::string, int64_t>;

  const size_t most_;
  std::mutex mutex_;  // of what follows
  std::map<Key, Sha256> known_;
  std::deque<Key> oldest_first_;
};

}  // namespace luthier
