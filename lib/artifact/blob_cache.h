// Blobs of a distant store that somebody here needs as files: a folder with a limit.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/artifact/file_artifact_store.h"

namespace luthier {

// Each blob is fetched once, with its hash checked, and goes when room is needed, the longest unused first.
// Thread-safe.
class BlobCache {
 public:
  // What another process left there stays, and is checked before it is used. One process owns a folder.
  static absl::StatusOr<std::unique_ptr<BlobCache>> Open(const std::string& folder, int64_t max_bytes);

  // The cache must outlive the lease. Errors: those of `source`; RESOURCE_EXHAUSTED if it does not fit beside what is
  // in use.
  absl::StatusOr<LocalBlob> Get(ArtifactStore& source, const std::string& sha256);

 private:
  BlobCache(std::string folder, int64_t max_bytes, std::unique_ptr<FileArtifactStore> store)
      : folder_(std::move(folder)), max_bytes_(max_bytes), store_(std::move(store)) {}
  std::shared_ptr<const void> Lease(const std::string& sha256);
  absl::Status Fetch(ArtifactStore& source, const std::string& sha256);
  absl::Status MakeRoom(int64_t bytes);

  const std::string folder_;
  const int64_t max_bytes_;
  const std::unique_ptr<FileArtifactStore> store_;

  std::mutex mutex_;  // of what follows
  std::condition_variable fetched_;
  std::map<std::string, int> leases_;
  std::set<std::string> fetching_;  // by some thread; others wait
  std::set<std::string> checked_;   // there, and read since this process began
  int64_t coming_ = 0;              // bytes of those that are being fetched
};

}  // namespace luthier
