#include "lib/artifact/artifact_store.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

constexpr char kBlobs[] = "blobs/sha256";
constexpr char kManifests[] = "jobs";
constexpr size_t kCopyChunk = size_t{1} << 20;

absl::StatusOr<std::string> ManifestPath(const ArtifactKey& key) {
  for (const std::string& name : {key.job, key.name}) {
    if (absl::Status status = CheckName(name); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("artifact ", status.message()));
    }
  }
  if (key.attempt < 1) return absl::InvalidArgumentError("artifact: attempts count from 1");
  return absl::StrCat(kManifests, "/", key.job, "/attempt-", key.attempt, "/", key.name, "/manifest.json");
}

// None for a path that ManifestPath() does not give.
std::optional<ArtifactKey> KeyOfManifest(const std::string& path) {
  const std::vector<std::string> names = absl::StrSplit(path, '/');
  if (names.size() != 5 || names[4] != "manifest.json") return std::nullopt;
  ArtifactKey key{names[1], 0, names[3]};
  if (!absl::SimpleAtoi(absl::StripPrefix(names[2], "attempt-"), &key.attempt)) return std::nullopt;
  return key;
}

std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

absl::StatusOr<std::string> ArtifactStore::PathOfBlob(absl::string_view sha256) {
  if (IsSha256Hex(sha256)) return absl::StrCat(kBlobs, "/", sha256.substr(0, 2), "/", sha256);
  return absl::InvalidArgumentError("a blob is named by its SHA-256, 64 lower-case hexadecimal digits");
}

absl::StatusOr<int64_t> ArtifactStore::BlobSize(absl::string_view sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  LUTHIER_ASSIGN_OR_RETURN(const File blob, Stat(path));
  return blob.bytes;
}

absl::Status ArtifactStore::DeleteBlob(absl::string_view sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  return Remove(path);
}

absl::Status ArtifactStore::PutManifest(const ArtifactKey& key, const Manifest& manifest) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, ManifestPath(key));
  LUTHIER_RETURN_IF_ERROR(ParseManifest(ToJson(manifest)).status());
  for (const ManifestFile& file : manifest.files) {
    const absl::StatusOr<int64_t> size = BlobSize(file.sha256);
    if (!size.ok() && !absl::IsNotFound(size.status())) return size.status();
    if (!size.ok() || *size != file.bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("'", file.path, "' is not stored with ", file.bytes, " bytes; upload it first"));
    }
  }
  absl::Status written = WriteNew(path, ToJson(manifest).dump(2) + "\n");
  if (!absl::IsAlreadyExists(written)) return written;
  // By somebody else, or by a try of ours whose answer was lost.
  LUTHIER_ASSIGN_OR_RETURN(const Manifest existing, GetManifest(key));
  if (existing == manifest) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(path, ": is published with other files"));
}

absl::StatusOr<Manifest> ArtifactStore::GetManifest(const ArtifactKey& key) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, ManifestPath(key));
  LUTHIER_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  absl::StatusOr<Manifest> manifest = ParseManifest(nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false));
  if (!manifest.ok()) return absl::DataLossError(absl::StrCat(path, ": is damaged: ", manifest.status().message()));
  return manifest;
}

void ArtifactStore::Pin(const std::string& sha256) {
  std::unique_lock lock(mutex_);
  removed_.wait(lock, [&] { return removing_ != sha256; });
  ++pins_[sha256];
  if (touched_) touched_->insert(sha256);
}

void ArtifactStore::Unpin(const std::string& sha256) {
  const std::lock_guard lock(mutex_);
  const auto found = pins_.find(sha256);
  if (--found->second == 0) pins_.erase(found);
}

// The order makes it safe. A blob listed here is older than the references that are then asked for; whoever began to
// use it since has pinned it since, and such blobs stay. Who wants to pin a blob that is just being removed waits.
absl::StatusOr<Garbage> ArtifactStore::CollectGarbage(const std::function<absl::StatusOr<References>()>& references,
                                                      absl::Duration keep) {
  const absl::Time before = absl::Now() - keep;
  {
    const std::lock_guard lock(mutex_);
    touched_.emplace();
    for (const auto& [sha256, count] : pins_) touched_->insert(sha256);
  }
  Garbage garbage;
  const auto collect = [&]() -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<File> blobs, List(kBlobs));
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<File> manifests, List(kManifests));
    LUTHIER_ASSIGN_OR_RETURN(References used, references());
    LUTHIER_RETURN_IF_ERROR(RemoveManifests(manifests, used, garbage));
    for (const File& blob : blobs) {
      const std::string sha256 = NameOf(blob.path);
      if (!IsSha256Hex(sha256) || used.blobs.count(sha256) > 0) continue;
      LUTHIER_RETURN_IF_ERROR(RemoveBlob(sha256, before, garbage));
    }
    return absl::OkStatus();
  };
  absl::Status status = collect();
  {
    const std::lock_guard lock(mutex_);
    touched_.reset();
  }
  if (!status.ok()) return status;
  return garbage;
}

// Those of attempts that nothing refers to; what the others name is referred to.
absl::Status ArtifactStore::RemoveManifests(const std::vector<File>& manifests, References& used, Garbage& garbage) {
  for (const File& file : manifests) {
    const std::optional<ArtifactKey> key = KeyOfManifest(file.path);
    if (!key) continue;
    if (used.attempts.count({key->job, key->attempt}) == 0) {
      LUTHIER_RETURN_IF_ERROR(Remove(file.path));
      ++garbage.manifests;
      continue;
    }
    LUTHIER_ASSIGN_OR_RETURN(const Manifest manifest, GetManifest(*key));
    for (const ManifestFile& named : manifest.files) used.blobs.insert(named.sha256);
  }
  return absl::OkStatus();
}

absl::Status ArtifactStore::RemoveBlob(const std::string& sha256, absl::Time before, Garbage& garbage) {
  {
    const std::lock_guard lock(mutex_);
    if (touched_->count(sha256) > 0) return absl::OkStatus();
    removing_ = sha256;
  }
  const auto remove = [&]() -> absl::Status {
    LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
    const absl::StatusOr<File> blob = Stat(path);  // it may have been written again since it was listed
    if (absl::IsNotFound(blob.status()) || (blob.ok() && blob->time > before)) return absl::OkStatus();
    LUTHIER_RETURN_IF_ERROR(blob.status());
    LUTHIER_RETURN_IF_ERROR(Remove(path));
    ++garbage.blobs;
    garbage.bytes += blob->bytes;
    return absl::OkStatus();
  };
  const absl::Status status = remove();
  {
    const std::lock_guard lock(mutex_);
    removing_.reset();
  }
  removed_.notify_all();
  return status;
}

BlobPins::~BlobPins() {
  for (const std::string& blob : blobs_) store_.Unpin(blob);
}

void BlobPins::Add(absl::string_view sha256) {
  store_.Pin(std::string(sha256));
  blobs_.emplace_back(sha256);
}

absl::Status CopyBlob(ArtifactStore& from, ArtifactStore& to, const std::string& sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> reader, from.OpenBlob(sha256, 0));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, to.PutBlob(sha256, reader->size()));
  std::vector<char> buffer(kCopyChunk);
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const size_t size, reader->Read(std::span<char>(buffer)));
    if (size == 0) return writer->Commit();
    LUTHIER_RETURN_IF_ERROR(writer->Append({buffer.data(), size}));
  }
}

}  // namespace luthier
