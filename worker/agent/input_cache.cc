#include "worker/agent/input_cache.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/artifact/hash.h"
#include "lib/base/bytes_text.h"
#include "lib/base/status_macros.h"
#include "worker/agent/backoff.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// Bytes that arrive with a wrong hash are fetched anew; a server that keeps sending them is not asked for ever.
constexpr int kMaxDamagedFetches = 3;
// A waiting thread looks this often whether its attempt is still wanted.
constexpr auto kPoll = std::chrono::milliseconds(100);

// The time of last use lies in the file's own time, so that it survives the agent.
absl::Time LastUsed(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 ? absl::TimeFromTimespec(info.st_mtim) : absl::InfinitePast();
}

void Touch(const std::string& path, absl::Time time) {
  const timespec times[2] = {absl::ToTimespec(time), absl::ToTimespec(time)};
  utimensat(AT_FDCWD, path.c_str(), times, 0);
}

}  // namespace

InputCache::Lease::~Lease() {
  if (cache_ != nullptr) cache_->Release(paths_);
}

absl::StatusOr<std::unique_ptr<InputCache>> InputCache::Open(Options options, BlobSource& source) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<FileArtifactStore> store, FileArtifactStore::Open(options.folder));
  std::unique_ptr<InputCache> cache(new InputCache(std::move(options), std::move(store), source));
  cache->Scan();
  return cache;
}

void InputCache::Scan() {
  std::error_code ignored;
  for (const auto& file : fs::recursive_directory_iterator(options_.folder + "/blobs", ignored)) {
    if (!file.is_regular_file(ignored)) continue;
    entries_[file.path().filename()] = {.bytes = static_cast<int64_t>(file.file_size(ignored)),
                                        .last_used = LastUsed(file.path())};
  }
}

absl::StatusOr<InputCache::Lease> InputCache::Acquire(const AttemptPass& pass, const std::vector<Blob>& blobs,
                                                      Cancellation& cancellation) {
  Lease lease(this);
  for (const Blob& blob : blobs) {
    if (lease.paths_.count(blob.sha256) > 0) continue;
    LUTHIER_ASSIGN_OR_RETURN(const std::string path, store_->BlobPath(blob.sha256));
    {
      const std::lock_guard lock(mutex_);
      ++entries_[blob.sha256].leases;
      lease.paths_[blob.sha256] = path;
    }
    LUTHIER_RETURN_IF_ERROR(MakeLocal(pass, blob, cancellation));
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[blob.sha256];
    entry.last_used = absl::Now();
    if (entry.shared_path.empty()) {
      Touch(path, entry.last_used);
    } else {
      lease.paths_[blob.sha256] = entry.shared_path;
    }
  }
  return lease;
}

// One thread makes a blob local; the others that want it wait for it.
absl::Status InputCache::MakeLocal(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation) {
  {
    std::unique_lock lock(mutex_);
    Entry& entry = entries_[blob.sha256];  // stays where it is: this thread's lease keeps it
    while (entry.fetching && !cancellation.cancelled()) changed_.wait_for(lock, kPoll);
    if (cancellation.cancelled()) return NotWanted();
    if (entry.verified && InPlace(blob, entry.shared_path)) return absl::OkStatus();
    entry = {.leases = entry.leases, .fetching = true};
  }
  absl::StatusOr<std::string> shared_path = FindVerified(blob);
  const absl::Status local = shared_path.ok() ? absl::OkStatus() : Fetch(pass, blob, cancellation);
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[blob.sha256];
  entry.fetching = false;
  entry.verified = local.ok();
  if (shared_path.ok()) entry.shared_path = *shared_path;
  entry.bytes = local.ok() && entry.shared_path.empty() ? blob.bytes : 0;
  changed_.notify_all();
  return local;
}

// Whether somebody took the file away since it was verified.
bool InputCache::InPlace(const Blob& blob, const std::string& shared_path) const {
  std::error_code error;
  const std::string path =
      shared_path.empty() ? FileArtifactStore::BlobPathIn(options_.folder, blob.sha256) : shared_path;
  return static_cast<int64_t>(fs::file_size(path, error)) == blob.bytes && !error;
}

// The path in the shared store, or nothing if it lies in the cache's own. Errors: NOT_FOUND.
absl::StatusOr<std::string> InputCache::FindVerified(const Blob& blob) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string own, store_->BlobPath(blob.sha256));
  std::error_code error;
  if (fs::exists(own, error)) {
    const absl::StatusOr<std::string> hash = Sha256OfFile(own);
    if (hash.ok() && *hash == blob.sha256) return std::string();
    LUTHIER_RETURN_IF_ERROR(store_->DeleteBlob(blob.sha256));
  }
  if (options_.shared_store.empty()) return absl::NotFoundError(blob.sha256);
  const std::string shared = FileArtifactStore::BlobPathIn(options_.shared_store, blob.sha256);
  const absl::StatusOr<std::string> hash = Sha256OfFile(shared);
  if (hash.ok() && *hash == blob.sha256) return shared;
  return absl::NotFoundError(blob.sha256);
}

absl::Status InputCache::Fetch(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation) {
  LUTHIER_RETURN_IF_ERROR(MakeRoom(blob));
  absl::Status status;
  for (int fetch = 1; fetch <= kMaxDamagedFetches; ++fetch) {
    status = FetchOnce(pass, blob, cancellation);
    if (!absl::IsInvalidArgument(status)) return status;
  }
  return status;
}

// Goes on from where it stopped as often as the connection breaks.
absl::Status InputCache::FetchOnce(const AttemptPass& pass, const Blob& blob, Cancellation& cancellation) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, store_->PutBlob(blob.sha256, blob.bytes));
  Backoff backoff;
  const auto sink = [&](absl::string_view bytes) {
    backoff.Reset();
    options_.on_fetched(static_cast<int64_t>(bytes.size()));
    return writer->Append(bytes);
  };
  while (true) {
    const absl::Status fetched = source_.Fetch(pass, blob.sha256, writer->bytes(), sink, cancellation);
    if (cancellation.cancelled()) return NotWanted();
    if (fetched.ok()) return writer->Commit();
    if (!absl::IsUnavailable(fetched) && !absl::IsCancelled(fetched) && !absl::IsDeadlineExceeded(fetched)) {
      if (!absl::IsNotFound(fetched) && !absl::IsDataLoss(fetched)) return fetched;
      return absl::FailedPreconditionError(
          absl::StrCat("the server cannot give input ", blob.sha256, ": ", fetched.message()));
    }
    cancellation.WaitFor(backoff.Next());
  }
}

// Evicts what nobody leases, the longest unused first.
absl::Status InputCache::MakeRoom(const Blob& blob) {
  const std::lock_guard lock(mutex_);
  int64_t total = blob.bytes;
  std::multimap<absl::Time, std::string> idle;
  for (const auto& [sha256, entry] : entries_) {
    total += entry.bytes;
    if (entry.leases == 0) idle.emplace(entry.last_used, sha256);
  }
  for (auto next = idle.begin(); total > options_.max_bytes && next != idle.end(); ++next) {
    LUTHIER_RETURN_IF_ERROR(store_->DeleteBlob(next->second));
    total -= entries_[next->second].bytes;
    entries_.erase(next->second);
  }
  if (total > options_.max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the inputs of the running attempts need ", FormatBytes(total),
                                                     " and --cache-limit is ", FormatBytes(options_.max_bytes),
                                                     "; raise it on this node"));
  }
  entries_[blob.sha256].bytes = blob.bytes;  // taken, though not yet there
  return absl::OkStatus();
}

void InputCache::Release(const std::map<std::string, std::string>& paths) {
  const std::lock_guard lock(mutex_);
  for (const auto& [sha256, path] : paths) {
    const auto entry = entries_.find(sha256);
    // What never became local, and what lies elsewhere, is nothing to remember.
    if (--entry->second.leases == 0 && entry->second.bytes == 0) entries_.erase(entry);
  }
}

int64_t InputCache::bytes() const {
  const std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (const auto& [sha256, entry] : entries_) total += entry.bytes;
  return total;
}

}  // namespace luthier
