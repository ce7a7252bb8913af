#include "lib/artifact/file_artifact_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/checked_blob.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/bytes_text.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// Kept free so that the server's database, on the same disk by default, can still record what happens.
constexpr int64_t kReserveBytes = int64_t{64} << 20;

// `others`: bytes that others are just writing there. Errors: RESOURCE_EXHAUSTED.
absl::Status CheckRoom(const std::string& folder, int64_t bytes, int64_t others) {
  LUTHIER_ASSIGN_OR_RETURN(const int64_t free, FreeBytes(folder));
  if (free - kReserveBytes - others >= bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      folder, ": ", FormatBytes(free), " are free, ", FormatBytes(bytes),
      others > 0 ? absl::StrCat(", ", FormatBytes(others), " that others are writing") : "", " and a reserve of ",
      FormatBytes(kReserveBytes), " are needed; free space on that disk and try again"));
}

// A piece that is looking for its room, or being written. Without it many at once would each find the same room.
// Counted before the disk is asked: what others write meanwhile counts twice, and never not at all.
class Piece {
 public:
  Piece(std::atomic<int64_t>& of_all, int64_t bytes)
      : of_all_(of_all), bytes_(bytes), others_(of_all_.fetch_add(bytes)) {}
  Piece(const Piece&) = delete;
  ~Piece() { of_all_.fetch_sub(bytes_); }
  int64_t others() const { return others_; }

 private:
  std::atomic<int64_t>& of_all_;
  const int64_t bytes_, others_;
};

// Room is looked for piece by piece. What an upload announces is compared with the disk at its start and not held for
// it: one that announces much and sends a byte now and then would keep others out for as long as it likes. So the disk
// may fill up under an upload; it is refused then, and leaves nothing.
class FileBlobWriter : public BlobWriter {
 public:
  FileBlobWriter(DurableFile file, std::string root, std::shared_ptr<std::atomic<int64_t>> writing, std::string path,
                 std::string sha256, BlobPins* pins)
      : file_(std::move(file)),
        root_(std::move(root)),
        writing_(std::move(writing)),
        path_(std::move(path)),
        sha256_(std::move(sha256)),
        pins_(pins) {}

  absl::Status Append(absl::string_view bytes) override {
    const auto size = static_cast<int64_t>(bytes.size());
    const Piece piece(*writing_, size);
    LUTHIER_RETURN_IF_ERROR(CheckRoom(root_, size, piece.others()));
    hash_.Update(bytes);
    bytes_ += size;
    return file_.Append({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  }

  absl::Status Commit() override {
    LUTHIER_RETURN_IF_ERROR(CheckReceived(hash_.FinishHex(), sha256_, bytes_));
    if (pins_ != nullptr)
      pins_->Add(sha256_);  // before the file has its name: a collection would find nothing that refers to it
    return file_.CommitAs(path_);
  }

  int64_t bytes() const override { return bytes_; }

 private:
  DurableFile file_;
  const std::string root_;
  const std::shared_ptr<std::atomic<int64_t>> writing_;
  const std::string path_, sha256_;
  BlobPins* pins_;
  Sha256 hash_;
  int64_t bytes_ = 0;
};

class FileBlobReader : public CheckedReader {
 public:
  FileBlobReader(Descriptor file, std::string sha256, std::string path, int64_t size)
      : CheckedReader(std::move(sha256), size, path), file_(std::move(file)), path_(std::move(path)) {}

 private:
  absl::StatusOr<size_t> ReadSome(int64_t, std::span<char> buffer) override {
    ssize_t count;
    do {
      count = read(file_.get(), buffer.data(), buffer.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) return FileError(path_, "read", errno);
    return static_cast<size_t>(count);
  }

  Descriptor file_;
  const std::string path_;
};

}  // namespace

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
  std::error_code hidden;  // from our user, as the server's data folder is from every other one
  if (!fs::is_directory(root + "/incoming", hidden) || !fs::is_directory(root + "/blobs/sha256", hidden)) {
    return absl::NotFoundError(absl::StrCat(root,
                                            ": is no artifact store that our user can see; give the folder `artifacts` "
                                            "of the server's data folder"));
  }
  return std::unique_ptr<FileArtifactStore>(new FileArtifactStore(root));
}

absl::StatusOr<std::string> FileArtifactStore::BlobPath(absl::string_view sha256) const {
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, PathOfBlob(sha256));
  return root_ + "/" + path;
}

std::string FileArtifactStore::BlobPathIn(const std::string& root, absl::string_view sha256) {
  return absl::StrCat(root, "/blobs/sha256/", sha256.substr(0, 2), "/", sha256);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> FileArtifactStore::PutBlob(const std::string& sha256,
                                                                       int64_t expected_bytes, BlobPins* pins) {
  LUTHIER_ASSIGN_OR_RETURN(std::string path, BlobPath(sha256));
  LUTHIER_RETURN_IF_ERROR(CheckRoom(root_, expected_bytes, 0));
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(root_ + "/incoming/blob"));
  return std::make_unique<FileBlobWriter>(std::move(file), root_, writing_, std::move(path), sha256, pins);
}

absl::StatusOr<std::unique_ptr<BlobReader>> FileArtifactStore::OpenBlob(absl::string_view sha256, int64_t offset) {
  LUTHIER_ASSIGN_OR_RETURN(const int64_t size, BlobSize(sha256));
  if (offset < 0 || offset > size)
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of a blob of ", size, " bytes"));
  LUTHIER_ASSIGN_OR_RETURN(const std::string path, BlobPath(sha256));
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) return FileError(path, "open", errno);
  auto reader = std::make_unique<FileBlobReader>(std::move(file), std::string(sha256), path, size);
  LUTHIER_RETURN_IF_ERROR(reader->SkipTo(offset));
  return reader;
}

absl::StatusOr<LocalBlob> FileArtifactStore::MakeLocal(const std::string& sha256) {
  LUTHIER_RETURN_IF_ERROR(BlobSize(sha256).status());
  return LocalBlob{*BlobPath(sha256), nullptr};
}

absl::StatusOr<std::string> FileArtifactStore::SignBlob(absl::string_view, absl::Duration) {
  return absl::FailedPreconditionError(
      "the files of this server are in a folder of its machine, to which there are no links; download through the "
      "server (`luthier model download`), or run luthierd with a bucket (--artifact-store)");
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
  return CopyBlob(other, *this, sha256);
}

absl::StatusOr<ArtifactStore::File> FileArtifactStore::Stat(const std::string& path) {
  struct stat info;
  if (stat((root_ + "/" + path).c_str(), &info) != 0) return FileError(root_ + "/" + path, "stat", errno);
  return File{path, static_cast<int64_t>(info.st_size), absl::TimeFromTimespec(info.st_mtim)};
}

absl::StatusOr<std::string> FileArtifactStore::ReadText(const std::string& path) {
  const std::string whole = root_ + "/" + path;
  std::ifstream stream(whole, std::ios::binary);
  if (!stream) return FileError(whole, "open", errno);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (stream.bad()) return FileError(whole, "read", EIO);
  return text;
}

absl::Status FileArtifactStore::WriteNew(const std::string& path, const std::string& text) {
  const std::string whole = root_ + "/" + path;
  const std::lock_guard lock(naming_);
  std::error_code hidden;  // from our user: creating it says why
  if (fs::exists(whole, hidden)) return absl::AlreadyExistsError(absl::StrCat(whole, ": exists"));
  LUTHIER_RETURN_IF_ERROR(CreateFolders(fs::path(whole).parent_path()));
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(root_ + "/incoming/text"));
  LUTHIER_RETURN_IF_ERROR(file.Append({reinterpret_cast<const std::byte*>(text.data()), text.size()}));
  return file.CommitAs(whole);
}

absl::Status FileArtifactStore::Remove(const std::string& path) {
  const std::string whole = root_ + "/" + path;
  if (unlink(whole.c_str()) != 0) return errno == ENOENT ? absl::OkStatus() : FileError(whole, "delete", errno);
  const std::string folder = fs::path(whole).parent_path();
  // A manifest has its folder to itself.
  if (absl::StartsWith(path, "jobs/") && rmdir(folder.c_str()) == 0) return absl::OkStatus();
  return SyncFolder(folder);
}

absl::StatusOr<std::vector<ArtifactStore::File>> FileArtifactStore::List(const std::string& folder) {
  std::vector<File> files;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root_ + "/" + folder, error), end; entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (!entry->is_regular_file(ignored)) continue;
    absl::StatusOr<File> file = Stat(entry->path().lexically_relative(root_).generic_string());
    if (file.ok()) files.push_back(*std::move(file));  // else it went meanwhile
  }
  if (error) return FileError(root_ + "/" + folder, "list", error.value());
  return files;
}

}  // namespace luthier
