// Inputs of attempts on this node: blobs named by their content, fetched once, verified, and evicted when the cache is
// full.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/artifact/file_artifact_store.h"
#include "worker/agent/cancellation.h"
#include "worker/agent/server_files.h"

namespace luthier {

// Thread-safe.
class InputCache {
 public:
  struct Options {
    std::string folder;
    // Folder of the server's artifact store as this machine sees it, read only; empty if it does not.
    std::string shared_store;
    int64_t max_bytes = int64_t{50} << 30;
    // Called with the bytes of each piece that was fetched.
    std::function<void(int64_t)> on_fetched = [](int64_t) {};
  };
  struct Blob {
    std::string sha256;
    int64_t bytes = 0;
  };

  // Keeps its blobs where they are while it lives.
  class Lease {
   public:
    Lease(Lease&& other) noexcept : cache_(std::exchange(other.cache_, nullptr)), paths_(std::move(other.paths_)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease();
    // Where a blob of this lease lies.
    const std::string& Path(const std::string& sha256) const { return paths_.at(sha256); }

   private:
    friend class InputCache;
    explicit Lease(InputCache* cache) : cache_(cache) {}
    InputCache* cache_;
    std::map<std::string, std::string> paths_;
  };

  // `source` must outlive the cache.
  static absl::StatusOr<std::unique_ptr<InputCache>> Open(Options options, BlobSource& source);

  // Makes every blob, inputs of one attempt, local and checks its hash (once a process: later uses trust the disk).
  // Waits as long as the server is away. Errors: RESOURCE_EXHAUSTED if the blobs do not fit into the cache or on the
  // disk; FAILED_PRECONDITION if the server lacks one or its copy is damaged; CANCELLED; those of the disk.
  absl::StatusOr<Lease> Acquire(const AttemptPass& pass, const std::vector<Blob>& blobs, Cancellation& cancellation);

  int64_t bytes() const;

 private:
  struct Entry {
    int64_t bytes = 0;
    absl::Time last_used;
    int leases = 0;
    bool fetching = false;  // by the thread that set it; others wait
    bool verified = false;
    std::string shared_path;  // not empty: it lies in the shared store
  };

  InputCache(Options options, std::unique_ptr<FileArtifactStore> store, BlobSource& source)
      : options_(std::move(options)), store_(std::move(store)), source_(source) {}
  void Scan();
  absl::Status MakeLocal(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation);
  absl::StatusOr<std::string> FindVerified(const Blob& blob);
  absl::Status Fetch(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation);
  absl::Status FetchOnce(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation);
  bool InPlace(const Blob& blob, const std::string& shared_path) const;
  absl::Status MakeRoom(const Blob& blob);
  void Release(const std::map<std::string, std::string>& paths);

  const Options options_;
  const std::unique_ptr<FileArtifactStore> store_;
  BlobSource& source_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Entry> entries_;
};

}  // namespace luthier
