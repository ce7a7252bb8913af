// The server's side of file transfers, in memory, with breaks on order.
#pragma once

#include <atomic>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "worker/agent/server_files.h"

namespace luthier {

// Functions are thread-safe; the members are for a test whose agent does nothing just then.
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
  void RefuseUploads(const absl::Status& error) {
    const std::lock_guard lock(mutex_);
    upload_error = error;
  }
  size_t fetches() {
    const std::lock_guard lock(mutex_);
    return offsets.size();
  }
  void Damage(const std::string& sha256) { blobs_[sha256][0] ^= 1; }

  absl::Status Fetch(const AttemptPass& pass, const std::string& sha256, int64_t offset,
                     const std::function<absl::Status(absl::string_view)>& sink, Cancellation& cancellation) override {
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    const std::lock_guard lock(mutex_);
    offsets.push_back(offset);
    passes.insert({pass.attempt, pass.credential});
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

  absl::Status Upload(const ArtifactUpload& upload, Cancellation& cancellation) override {
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    const std::lock_guard lock(mutex_);
    ++uploads;
    passes.insert({upload.pass.attempt, upload.pass.credential});
    last_stored = upload.stored;
    if (away) return absl::UnavailableError("the server is away");
    if (!upload_error.ok()) return upload_error;
    for (const ManifestFile& file : upload.manifest.files) {
      if (upload.checkpoint && upload.stored.count(file.sha256) > blobs_.count(file.sha256))
        return absl::FailedPreconditionError(file.path + " is not stored");
    }
    for (const ManifestFile& file : upload.manifest.files) {
      if (upload.stored.count(file.sha256) > 0) continue;
      std::ifstream stream(upload.folder + "/" + file.path, std::ios::binary);
      blobs_[file.sha256] = std::string(std::istreambuf_iterator<char>(stream), {});
      ++sent[file.path];
      upload.on_sent(file.bytes);
    }
    (upload.checkpoint ? checkpoints : uploaded)[upload.pass.attempt] = upload.manifest;
    return absl::OkStatus();
  }

  std::atomic<bool> away = false;
  absl::Status upload_error;
  std::atomic<int> uploads = 0;
  std::set<std::string> last_stored;
  std::map<std::string, Manifest> uploaded;              // by attempt
  std::map<std::string, Manifest> checkpoints;           // the newest one of each attempt
  std::map<std::string, int> sent;                       // how often, by path
  std::vector<int64_t> offsets;                          // of every fetch
  std::set<std::pair<std::string, std::string>> passes;  // attempts with their credentials, as they were shown

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> blobs_;
  int breaks_ = 0;
};

}  // namespace luthier
