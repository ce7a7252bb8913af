#include "worker/agent/checkpoint_upload.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "worker/agent/backoff.h"
#include "worker/agent/shared_store.h"

namespace luthier {

namespace fs = std::filesystem;

CheckpointUpload::~CheckpointUpload() {
  GiveUp();
  if (thread_.joinable()) thread_.join();
}

// What is replaced before its turn, or gone already, is not missed: a newer one is written soon.
void CheckpointUpload::Offer(const RunCheckpoint& checkpoint) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || checkpoint.step <= 0 || checkpoint.step == newest_step_) return;
  }
  // Without the lock: whoever gives the upload up must not wait for the disk.
  if (!LinkCheckpoint(options_.checkpoints, checkpoint, LinksOf(checkpoint)).ok()) return;
  std::optional<RunCheckpoint> replaced;
  {
    const std::lock_guard lock(mutex_);
    replaced = std::exchange(next_, checkpoint);
    newest_step_ = checkpoint.step;
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    changed_.notify_all();
  }
  std::error_code ignored;
  if (replaced) fs::remove_all(LinksOf(*replaced), ignored);
}

void CheckpointUpload::Finish(absl::Duration patience) {
  {
    std::unique_lock lock(mutex_);
    hurried_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, absl::ToChronoMilliseconds(patience), [this] { return closed_ || (!next_ && !busy_); });
  }
  GiveUp();
}

void CheckpointUpload::GiveUp() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  cancellation_.Cancel();
}

std::optional<absl::StatusOr<v1::CheckpointStored>> CheckpointUpload::TakeOutcome() {
  const std::lock_guard lock(mutex_);
  return std::exchange(outcome_, std::nullopt);
}

std::string CheckpointUpload::LinksOf(const RunCheckpoint& checkpoint) const {
  return absl::StrCat(options_.links, "/", checkpoint.step);
}

bool CheckpointUpload::HasNewer() const {
  const std::lock_guard lock(mutex_);
  return next_.has_value();
}

// --- The upload's thread.

void CheckpointUpload::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || next_; });
    if (closed_) return;
    const RunCheckpoint checkpoint = *std::exchange(next_, std::nullopt);
    busy_ = true;
    lock.unlock();
    absl::StatusOr<v1::CheckpointStored> outcome = Store(checkpoint);
    std::error_code ignored;
    fs::remove_all(LinksOf(checkpoint), ignored);
    lock.lock();
    busy_ = false;
    if (!outcome.ok() && newest_step_ == checkpoint.step) newest_step_ = 0;
    outcome_ = std::move(outcome);
    changed_.notify_all();
  }
}

absl::StatusOr<v1::CheckpointStored> CheckpointUpload::Store(const RunCheckpoint& checkpoint) {
  const std::string folder = LinksOf(checkpoint);
  LUTHIER_ASSIGN_OR_RETURN(const Manifest manifest, ManifestOfFolder(folder));
  v1::CheckpointStored stored;
  stored.set_step(checkpoint.step);
  const std::string state = absl::StrCat(kStepFolder, checkpoint.step, "/", kStateFile);
  for (const ManifestFile& file : manifest.files) {
    *stored.add_files() = ToProto(file);
    if (file.path == state) stored.set_hash(file.sha256);
  }
  if (stored.hash().empty()) return absl::DataLossError(absl::StrCat(state, " is missing"));
  LUTHIER_RETURN_IF_ERROR(Send(manifest, folder));
  stored_.clear();  // what an older one had alone may be removed from now on
  for (const ManifestFile& file : manifest.files) stored_.insert(file.sha256);
  return stored;
}

// As long as the server is away, unless a newer checkpoint waits.
absl::Status CheckpointUpload::Send(const Manifest& manifest, const std::string& folder) {
  std::set<std::string> present = CopyIntoSharedStore(options_.shared_store, folder, manifest);
  present.insert(stored_.begin(), stored_.end());
  Backoff backoff;
  while (true) {
    absl::Status sent = sink_.Upload({.pass = *options_.pass,
                                      .folder = folder,
                                      .manifest = manifest,
                                      .stored = present,
                                      .checkpoint = true,
                                      .on_sent = [this](int64_t bytes) { Pace(bytes); }},
                                     cancellation_);
    if (cancellation_.cancelled() && !sent.ok()) return absl::CancelledError("given up");
    if (absl::IsFailedPrecondition(sent) && !present.empty()) {
      present.clear();  // the store has lost some, or it is another one: send everything
    } else if (!absl::IsUnavailable(sent) || HasNewer()) {
      return sent;
    } else {
      cancellation_.WaitFor(backoff.Next());
    }
  }
}

void CheckpointUpload::Pace(int64_t bytes) {
  if (options_.bytes_per_second <= 0) return;
  const absl::Duration pause =
      absl::Seconds(static_cast<double>(bytes) / static_cast<double>(options_.bytes_per_second));
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, absl::ToChronoMicroseconds(pause), [this] { return hurried_ || closed_; });
}

}  // namespace luthier
