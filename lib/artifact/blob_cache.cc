#include "lib/artifact/blob_cache.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/bytes_text.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// The time of last use is the file's own, so that it survives the process.
void Touch(const std::string& path) { utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

}  // namespace

absl::StatusOr<std::unique_ptr<BlobCache>> BlobCache::Open(const std::string& folder, int64_t max_bytes) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<FileArtifactStore> store, FileArtifactStore::Open(folder));
  return std::unique_ptr<BlobCache>(new BlobCache(folder, max_bytes, std::move(store)));
}

absl::StatusOr<LocalBlob> BlobCache::Get(ArtifactStore& source, const std::string& sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, store_->BlobPath(sha256));
  LocalBlob blob{path, Lease(sha256)};  // first, so that nobody takes it away in between
  {
    std::unique_lock lock(mutex_);
    fetched_.wait(lock, [&] { return fetching_.count(sha256) == 0; });
    if (checked_.count(sha256) > 0) {
      Touch(path);
      return blob;
    }
    fetching_.insert(sha256);
  }
  const absl::StatusOr<std::string> found = Sha256OfFile(path);
  const absl::Status status = found.ok() && *found == sha256 ? absl::OkStatus() : Fetch(source, sha256);
  {
    const std::lock_guard lock(mutex_);
    fetching_.erase(sha256);
    if (status.ok()) checked_.insert(sha256);
  }
  fetched_.notify_all();
  if (!status.ok()) return status;
  Touch(path);
  return blob;
}

std::shared_ptr<const void> BlobCache::Lease(const std::string& sha256) {
  const std::lock_guard lock(mutex_);
  ++leases_[sha256];
  return std::shared_ptr<const void>(this, [this, sha256](const void*) {
    const std::lock_guard back(mutex_);
    const auto lease = leases_.find(sha256);
    if (--lease->second == 0) leases_.erase(lease);
  });
}

absl::Status BlobCache::Fetch(ArtifactStore& source, const std::string& sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const int64_t bytes, source.BlobSize(sha256));
  LUTHIER_RETURN_IF_ERROR(MakeRoom(bytes));
  const absl::Status copied = CopyBlob(source, *store_, sha256);
  const std::lock_guard lock(mutex_);
  coming_ -= bytes;
  return copied;
}

absl::Status BlobCache::MakeRoom(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  int64_t total = bytes + coming_;
  std::multimap<fs::file_time_type, fs::path> idle;
  std::error_code error;
  for (const auto& file : fs::recursive_directory_iterator(folder_ + "/blobs", error)) {
    if (!file.is_regular_file(error)) continue;
    total += static_cast<int64_t>(file.file_size(error));
    if (leases_.count(file.path().filename().string()) == 0) idle.emplace(file.last_write_time(error), file.path());
  }
  for (const auto& [used, path] : idle) {
    if (total <= max_bytes_) break;
    total -= static_cast<int64_t>(fs::file_size(path, error));
    fs::remove(path, error);
    checked_.erase(path.filename().string());
  }
  if (total > max_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("what is in use of stored files needs ", FormatBytes(total),
                                                     " on the server's machine, and ", "--artifact-cache-limit is ",
                                                     FormatBytes(max_bytes_), "; raise it"));
  }
  coming_ += bytes;
  return absl::OkStatus();
}

}  // namespace luthier
