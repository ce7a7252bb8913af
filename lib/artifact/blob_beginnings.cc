#include "lib/artifact/blob_beginnings.h"

#include <iterator>

namespace luthier {

void BlobBeginnings::Put(const std::string& sha256, int64_t bytes, const Sha256& hash) {
  if (bytes == 0) return;
  const std::lock_guard lock(mutex_);
  const Key key(sha256, bytes);
  if (!known_.try_emplace(key, hash).second) return;
  oldest_first_.push_back(key);
  if (oldest_first_.size() <= most_) return;
  known_.erase(oldest_first_.front());
  oldest_first_.pop_front();
}

BlobBeginnings::Beginning BlobBeginnings::Longest(const std::string& sha256, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto behind = known_.upper_bound(Key(sha256, bytes));
  if (behind == known_.begin()) return {};
  const auto& [key, hash] = *std::prev(behind);
  return key.first == sha256 ? Beginning{key.second, hash} : Beginning{};
}

}  // namespace luthier
