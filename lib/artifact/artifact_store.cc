#include "lib/artifact/artifact_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxPath = 1024;
constexpr size_t kMaxName = 255;  // what ext4 and XFS allow
// Kept free so that the server's database, on the same disk by default, can still record what happens.
constexpr int64_t kReserveBytes = int64_t{64} << 20;
constexpr size_t kReadChunk = size_t{1} << 20;

// A file descriptor that is closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

absl::Status CheckName(absl::string_view name) {
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(absl::StrCat("has the name '", name, "' in it; give plain names"));
  }
  if (name.size() > kMaxName) {
    return absl::InvalidArgumentError(absl::StrCat("has a name of ", name.size(), " bytes; give at most ", kMaxName));
  }
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\' || c == '/') {
      return absl::InvalidArgumentError("has a control character, slash or backslash in a name; give plain names");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBlobName(absl::string_view sha256) {
  if (IsSha256Hex(sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError("a blob is named by its SHA-256, 64 lower-case hexadecimal digits");
}

absl::StatusOr<std::string> ArtifactFolder(const ArtifactKey& key) {
  for (const std::string& name : {key.job, key.name}) {
    if (absl::Status status = CheckName(name); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("artifact ", status.message()));
    }
  }
  if (key.attempt < 1) return absl::InvalidArgumentError("artifact: attempts count from 1");
  return absl::StrCat("jobs/", key.job, "/attempt-", key.attempt, "/", key.name);
}

class FileBlobWriter : public BlobWriter {
 public:
  FileBlobWriter(DurableFile file, const FileArtifactStore& store, BlobPins* pins)
      : file_(std::move(file)), store_(store), pins_(pins) {}

  absl::Status Append(absl::string_view bytes) override {
    hash_.Update(bytes);
    bytes_ += static_cast<int64_t>(bytes.size());
    return file_.Append({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  }

  absl::StatusOr<std::string> Commit(absl::string_view expected_sha256) override {
    const std::string sha256 = hash_.FinishHex();
    if (!expected_sha256.empty() && sha256 != expected_sha256) {
      return absl::DataLossError(absl::StrCat("received ", bytes_, " bytes with SHA-256 ", sha256, ", expected ",
                                              expected_sha256, "; send the file again"));
    }
    LUTHIER_ASSIGN_OR_RETURN(const std::string path, store_.BlobPath(sha256));
    if (pins_ != nullptr)
      pins_->Add(sha256);  // before the file has its name: a collection would find nothing that refers to it
    LUTHIER_RETURN_IF_ERROR(file_.CommitAs(path));
    return sha256;
  }

  int64_t bytes() const override { return bytes_; }

 private:
  DurableFile file_;
  const FileArtifactStore& store_;
  BlobPins* pins_;
  Sha256 hash_;
  int64_t bytes_ = 0;
};

class FileBlobReader : public BlobReader {
 public:
  FileBlobReader(Descriptor file, std::string sha256, int64_t size)
      : file_(std::move(file)), sha256_(std::move(sha256)), size_(size) {}

  absl::StatusOr<size_t> Read(std::span<char> buffer) override {
    if (buffer.empty()) return 0;
    ssize_t count;
    do {
      count = read(file_.get(), buffer.data(), buffer.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) return FileError(sha256_, "read", errno);
    hash_.Update(absl::string_view(buffer.data(), static_cast<size_t>(count)));
    position_ += count;
    if ((count == 0 || position_ >= size_) && !checked_) {
      checked_ = true;
      intact_ = hash_.FinishHex() == sha256_;
    }
    if (checked_ && !intact_) {
      return absl::DataLossError(absl::StrCat("blob ", sha256_, " is damaged on disk; restore it from a backup"));
    }
    return static_cast<size_t>(count);
  }

  // Reads and hashes the first `offset` bytes.
  absl::Status Skip(int64_t offset) {
    std::vector<char> buffer(kReadChunk);
    while (offset > 0) {
      const size_t wanted = static_cast<size_t>(std::min<int64_t>(offset, static_cast<int64_t>(buffer.size())));
      LUTHIER_ASSIGN_OR_RETURN(const size_t count, Read({buffer.data(), wanted}));
      if (count == 0) return absl::DataLossError(absl::StrCat("blob ", sha256_, " became shorter"));
      offset -= static_cast<int64_t>(count);
    }
    return absl::OkStatus();
  }

  int64_t size() const override { return size_; }

 private:
  Descriptor file_;
  std::string sha256_;
  int64_t size_;
  int64_t position_ = 0;
  bool checked_ = false;
  bool intact_ = false;
  Sha256 hash_;
};

std::vector<std::string> ListBlobs(const std::string& root) {
  std::vector<std::string> blobs;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root + "/blobs/sha256", error), end; entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (IsSha256Hex(name)) blobs.push_back(name);
  }
  return blobs;
}

// Every `jobs/<job>/attempt-<N>/<name>/manifest.json`.
std::vector<ArtifactKey> ListManifests(const std::string& root) {
  std::vector<ArtifactKey> keys;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root + "/jobs", error), end; entry != end; entry.increment(error)) {
    if (entry.depth() != 3 || entry->path().filename() != "manifest.json") continue;
    const fs::path folder = entry->path().parent_path();
    ArtifactKey key{folder.parent_path().parent_path().filename(), 0, folder.filename()};
    const std::string attempt = folder.parent_path().filename();
    if (absl::SimpleAtoi(absl::StripPrefix(attempt, "attempt-"), &key.attempt)) keys.push_back(std::move(key));
  }
  return keys;
}

}  // namespace

json ToJson(const Manifest& manifest) {
  json files = json::array();
  for (const ManifestFile& file : manifest.files) {
    files.push_back({{"path", file.path}, {"sha256", file.sha256}, {"bytes", file.bytes}});
  }
  return {{"version", 1}, {"files", files}};
}

absl::StatusOr<Manifest> ParseManifest(const json& json) {
  Manifest manifest;
  try {
    if (json.at("version") != 1) return absl::InvalidArgumentError("manifest: version is not 1");
    for (const auto& file : json.at("files")) {
      manifest.files.push_back({file.at("path"), file.at("sha256"), file.at("bytes")});
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("manifest: ", error.what()));
  }
  std::set<std::string> paths;
  for (const ManifestFile& file : manifest.files) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path));
    LUTHIER_RETURN_IF_ERROR(CheckBlobName(file.sha256));
    if (file.bytes < 0)
      return absl::InvalidArgumentError(absl::StrCat("manifest: '", file.path, "' has a negative size"));
    if (!paths.insert(file.path).second) {
      return absl::InvalidArgumentError(absl::StrCat("manifest: '", file.path, "' is listed twice"));
    }
  }
  return manifest;
}

absl::Status CheckRelativePath(absl::string_view path) {
  if (path.size() > kMaxPath) {
    return absl::InvalidArgumentError(absl::StrCat("a path has ", path.size(), " bytes; give at most ", kMaxPath));
  }
  for (const absl::string_view name : absl::StrSplit(path, '/')) {
    if (absl::Status status = CheckName(name); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("path '", path, "' ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> OpenBeneath(const std::string& root, absl::string_view path) {
  LUTHIER_RETURN_IF_ERROR(CheckRelativePath(path));
  Descriptor folder(open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) return FileError(root, "open", errno);
  const std::vector<std::string> names = absl::StrSplit(path, '/');
  // One name at a time without following links: a link put there in the meantime changes nothing.
  for (size_t i = 0; i < names.size(); ++i) {
    const int kind = i + 1 < names.size() ? O_DIRECTORY : O_NONBLOCK;  // a pipe must not block the open
    Descriptor next(openat(folder.get(), names[i].c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | kind));
    if (next.get() < 0 && (errno == ELOOP || errno == ENOTDIR)) {
      return absl::InvalidArgumentError(absl::StrCat("path '", path, "' leads over a symbolic link or a file"));
    }
    if (next.get() < 0) return FileError(absl::StrCat(root, "/", path), "open", errno);
    folder = std::move(next);
  }
  struct stat info;
  if (fstat(folder.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("path '", path, "' is no regular file"));
  }
  return folder.release();
}

absl::StatusOr<Manifest> ManifestOfFolder(const std::string& folder) {
  Manifest manifest;
  std::error_code error;
  fs::recursive_directory_iterator entries(folder, error);
  if (error) return FileError(folder, "list", error.value());
  for (; entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    const fs::directory_entry& entry = *entries;
    const std::string path = entry.path().lexically_relative(folder).generic_string();
    if (!entry.is_symlink() && entry.is_directory()) continue;
    if (entry.is_symlink() || !entry.is_regular_file()) {
      return absl::InvalidArgumentError(
          absl::StrCat(entry.path().string(), ": is a link or no regular file; copy the file there"));
    }
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(path));
    LUTHIER_ASSIGN_OR_RETURN(std::string sha256, Sha256OfFile(entry.path().string()));
    manifest.files.push_back({path, std::move(sha256), static_cast<int64_t>(entry.file_size())});
  }
  if (error) return FileError(folder, "list", error.value());
  std::sort(manifest.files.begin(), manifest.files.end(),
            [](const ManifestFile& a, const ManifestFile& b) { return a.path < b.path; });
  return manifest;
}

absl::StatusOr<int64_t> FreeBytes(const std::string& folder) {
  struct statvfs info;
  if (statvfs(folder.c_str(), &info) != 0) return FileError(folder, "statvfs", errno);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

absl::StatusOr<std::unique_ptr<FileArtifactStore>> FileArtifactStore::Open(const std::string& root) {
  LUTHIER_RETURN_IF_ERROR(CreateFolders(root + "/incoming"));
  LUTHIER_RETURN_IF_ERROR(CreateFolders(root + "/jobs"));
  LUTHIER_RETURN_IF_ERROR(CreateFolders(root + "/blobs/sha256"));
  for (int i = 0; i < 256; ++i) {
    char name[3];
    std::snprintf(name, sizeof name, "%02x", i);
    std::error_code error;
    fs::create_directory(root + "/blobs/sha256/" + name, error);
    if (error) return FileError(root + "/blobs/sha256/" + name, "create", error.value());
  }
  LUTHIER_RETURN_IF_ERROR(SyncFolder(root + "/blobs/sha256"));
  // Everything in `incoming` is unfinished, and its process is gone: one process owns the folder.
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(root + "/incoming", error)) {
    std::error_code ignored;
    fs::remove(entry.path(), ignored);
  }
  return std::unique_ptr<FileArtifactStore>(new FileArtifactStore(root));
}

absl::StatusOr<std::unique_ptr<FileArtifactStore>> FileArtifactStore::OpenShared(const std::string& root) {
  if (!fs::is_directory(root + "/incoming") || !fs::is_directory(root + "/blobs/sha256")) {
    return absl::NotFoundError(
        absl::StrCat(root, ": is no artifact store; give the folder `artifacts` of the server's data folder"));
  }
  return std::unique_ptr<FileArtifactStore>(new FileArtifactStore(root));
}

absl::StatusOr<std::string> FileArtifactStore::BlobPath(absl::string_view sha256) const {
  LUTHIER_RETURN_IF_ERROR(CheckBlobName(sha256));
  return BlobPathIn(root_, sha256);
}

std::string FileArtifactStore::BlobPathIn(const std::string& root, absl::string_view sha256) {
  return absl::StrCat(root, "/blobs/sha256/", sha256.substr(0, 2), "/", sha256);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> FileArtifactStore::PutBlob(int64_t expected_bytes, BlobPins* pins) {
  LUTHIER_ASSIGN_OR_RETURN(const int64_t free, FreeBytes(root_));
  if (free - kReserveBytes < expected_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(root_, ": ", free, " bytes are free, ", expected_bytes,
                                                     " and a reserve of ", kReserveBytes,
                                                     " are needed; free space on that disk and try again"));
  }
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(root_ + "/incoming/blob"));
  return std::make_unique<FileBlobWriter>(std::move(file), *this, pins);
}

absl::StatusOr<std::unique_ptr<BlobReader>> FileArtifactStore::OpenBlob(absl::string_view sha256, int64_t offset) {
  LUTHIER_ASSIGN_OR_RETURN(const int64_t size, BlobSize(sha256));
  if (offset < 0 || offset > size)
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of a blob of ", size, " bytes"));
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, BlobPath(sha256));
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return FileError(path, "open", errno);
  auto reader = std::make_unique<FileBlobReader>(std::move(file), std::string(sha256), size);
  LUTHIER_RETURN_IF_ERROR(reader->Skip(offset));
  return reader;
}

absl::StatusOr<int64_t> FileArtifactStore::BlobSize(absl::string_view sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, BlobPath(sha256));
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return FileError(path, "stat", errno);
  return static_cast<int64_t>(info.st_size);
}

absl::Status FileArtifactStore::AddFrom(FileArtifactStore& other, const std::string& sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string from, other.BlobPath(sha256));
  LUTHIER_ASSIGN_OR_RETURN(const std::string to, BlobPath(sha256));
  if (HasBlob(sha256)) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string here, Sha256OfFile(to));
    if (here == sha256) return absl::OkStatus();
    LUTHIER_RETURN_IF_ERROR(DeleteBlob(sha256));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::string there, Sha256OfFile(from));
  if (there != sha256) return absl::DataLossError(absl::StrCat(from, ": is damaged, its content has another hash"));
  if (link(from.c_str(), to.c_str()) == 0) return SyncFolder(fs::path(to).parent_path().string());
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> reader, other.OpenBlob(sha256, 0));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, PutBlob(reader->size()));
  std::vector<char> buffer(1 << 20);
  while (true) {
    LUTHIER_ASSIGN_OR_RETURN(const size_t size, reader->Read(std::span<char>(buffer)));
    if (size == 0) return writer->Commit(sha256).status();
    LUTHIER_RETURN_IF_ERROR(writer->Append({buffer.data(), size}));
  }
}

absl::Status FileArtifactStore::PutManifest(const ArtifactKey& key, const Manifest& manifest) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string relative, ArtifactFolder(key));
  LUTHIER_RETURN_IF_ERROR(ParseManifest(ToJson(manifest)).status());
  for (const ManifestFile& file : manifest.files) {
    const absl::StatusOr<int64_t> size = BlobSize(file.sha256);
    if (!size.ok() || *size != file.bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("'", file.path, "' is not stored with ", file.bytes, " bytes; upload it first"));
    }
  }
  const absl::StatusOr<Manifest> existing = GetManifest(key);
  if (existing.ok()) {
    if (*existing == manifest) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat(relative, ": is published with other files"));
  }
  if (!absl::IsNotFound(existing.status())) return existing.status();
  const std::string folder = root_ + "/" + relative;
  LUTHIER_RETURN_IF_ERROR(CreateFolders(folder));
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(root_ + "/incoming/manifest"));
  const std::string text = ToJson(manifest).dump(2) + "\n";
  LUTHIER_RETURN_IF_ERROR(file.Append({reinterpret_cast<const std::byte*>(text.data()), text.size()}));
  return file.CommitAs(folder + "/manifest.json");
}

absl::StatusOr<Manifest> FileArtifactStore::GetManifest(const ArtifactKey& key) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string relative, ArtifactFolder(key));
  const std::string path = root_ + "/" + relative + "/manifest.json";
  std::ifstream stream(path);
  if (!stream) return FileError(path, "open", errno);
  const json parsed = json::parse(stream, nullptr, /*allow_exceptions=*/false);
  absl::StatusOr<Manifest> manifest = ParseManifest(parsed);
  if (!manifest.ok()) return absl::DataLossError(absl::StrCat(path, ": is damaged: ", manifest.status().message()));
  return manifest;
}

absl::Status FileArtifactStore::DeleteBlob(absl::string_view sha256) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, BlobPath(sha256));
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return FileError(path, "delete", errno);
  return SyncFolder(fs::path(path).parent_path().string());
}

void FileArtifactStore::Pin(const std::string& sha256) {
  const std::lock_guard lock(mutex_);
  ++pins_[sha256];
  if (touched_) touched_->insert(sha256);
}

void FileArtifactStore::Unpin(const std::string& sha256) {
  const std::lock_guard lock(mutex_);
  const auto found = pins_.find(sha256);
  if (--found->second == 0) pins_.erase(found);
}

// The order makes it safe. A blob listed here is older than the references that are then asked for; whoever began to
// use it since has pinned it since, and such blobs stay. The lock keeps a blob from being pinned between the check and
// its removal.
absl::StatusOr<Garbage> FileArtifactStore::CollectGarbage(const std::function<absl::StatusOr<References>()>& references,
                                                          absl::Duration keep) {
  const absl::Time before = absl::Now() - keep;
  {
    const std::lock_guard lock(mutex_);
    touched_.emplace();
    for (const auto& [sha256, count] : pins_) touched_->insert(sha256);
  }
  const auto end = [this](absl::Status status) {
    const std::lock_guard lock(mutex_);
    touched_.reset();
    return status;
  };
  const std::vector<std::string> blobs = ListBlobs(root_);
  const std::vector<ArtifactKey> manifests = ListManifests(root_);
  absl::StatusOr<References> used = references();
  if (!used.ok()) return end(used.status());
  Garbage garbage;
  for (const ArtifactKey& key : manifests) {
    if (used->attempts.count({key.job, key.attempt}) == 0) {
      std::error_code ignored;
      garbage.manifests += fs::remove_all(absl::StrCat(root_, "/", *ArtifactFolder(key)), ignored) > 0 ? 1 : 0;
      continue;
    }
    const absl::StatusOr<Manifest> manifest = GetManifest(key);
    if (!manifest.ok()) return end(manifest.status());
    for (const ManifestFile& file : manifest->files) used->blobs.insert(file.sha256);
  }
  for (const std::string& sha256 : blobs) {
    if (used->blobs.count(sha256) > 0) continue;
    if (absl::Status status = DeleteIfUntouched(sha256, before, garbage); !status.ok()) return end(status);
  }
  if (absl::Status status = end(absl::OkStatus()); !status.ok()) return status;
  return garbage;
}

absl::Status FileArtifactStore::DeleteIfUntouched(const std::string& sha256, absl::Time before, Garbage& garbage) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, BlobPath(sha256));
  const std::lock_guard lock(mutex_);
  if (touched_->count(sha256) > 0) return absl::OkStatus();
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || absl::TimeFromTimespec(info.st_mtim) > before) return absl::OkStatus();
  const auto bytes = static_cast<int64_t>(info.st_size);
  if (unlink(path.c_str()) != 0) return errno == ENOENT ? absl::OkStatus() : FileError(path, "delete", errno);
  ++garbage.blobs;
  garbage.bytes += bytes;
  return absl::OkStatus();
}

BlobPins::~BlobPins() {
  for (const std::string& blob : blobs_) store_.Unpin(blob);
}

void BlobPins::Add(absl::string_view sha256) {
  blobs_.emplace_back(sha256);
  store_.Pin(blobs_.back());
}

}  // namespace luthier
