// The server's side of file transfers, in memory, with breaks on order.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "worker/agent/server_files.h"

namespace luthier {

// Thread-safe.
class FakeServerFiles : public BlobSource, public ArtifactSink {
 public:
  // Returns the blob's name.
  std::string Add(const std::string& content) {
    const std::lock_guard lock(mutex_);
    const std::string sha256 = Sha256Hex(content);
    blobs_[sha256] = content;
    return sha256;
  }
  // The next `breaks` fetches break after half of what is left.
  void BreakFetches(int breaks) { breaks_ = breaks; }
  void Damage(const std::string& sha256) { blobs_[sha256][0] ^= 1; }

  absl::Status Fetch(const std::string& sha256, int64_t offset,
                     const std::function<absl::Status(absl::string_view)>& sink, Cancellation& cancellation) override {
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    const std::lock_guard lock(mutex_);
    offsets.push_back(offset);
    if (away) return absl::UnavailableError("the server is away");
    if (blobs_.count(sha256) == 0) return absl::NotFoundError(sha256);
    const std::string rest = blobs_[sha256].substr(static_cast<size_t>(offset));
    if (breaks_ > 0) {
      --breaks_;
      if (absl::Status status = sink(rest.substr(0, rest.size() / 2)); !status.ok()) return status;
      return absl::UnavailableError("the connection broke");
    }
    return sink(rest);
  }

  absl::Status Upload(const std::string& attempt, const std::string&, const Manifest& manifest,
                      const std::set<std::string>& stored, Cancellation& cancellation) override {
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    const std::lock_guard lock(mutex_);
    ++uploads;
    last_stored = stored;
    if (away) return absl::UnavailableError("the server is away");
    if (!upload_error.ok()) return upload_error;
    uploaded[attempt] = manifest;
    return absl::OkStatus();
  }

  std::atomic<bool> away = false;
  absl::Status upload_error;
  std::atomic<int> uploads = 0;
  std::set<std::string> last_stored;
  std::map<std::string, Manifest> uploaded;  // by attempt
  std::vector<int64_t> offsets;              // of every fetch

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> blobs_;
  int breaks_ = 0;
};

}  // namespace luthier
