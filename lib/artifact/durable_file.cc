#include "lib/artifact/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

std::string FolderOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

absl::Status FileError(const std::string& path, absl::string_view action, int error) {
  const std::string what = absl::StrCat(path, ": ", action, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return absl::ResourceExhaustedError(absl::StrCat(what, "; free space on that disk and try again"));
    case ENOENT: return absl::NotFoundError(what);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(
          absl::StrCat(what, "; let the user of this program do that, or give another place"));
    default: return absl::DataLossError(what);
  }
}

DurableFile::DurableFile(std::string path, std::string temporary, Descriptor file)
    : path_(std::move(path)), temporary_(std::move(temporary)), file_(std::move(file)) {}

DurableFile::~DurableFile() {
  if (file_.is_open()) unlink(temporary_.c_str());
}

absl::StatusOr<DurableFile> DurableFile::Create(const std::string& path) {
  std::string temporary = path + ".tmp-XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return FileError(path, "create", errno);
  fchmod(fd, 0644);  // mkostemp gives 0600; who may enter is the matter of the folder
  return DurableFile(path, std::move(temporary), Descriptor(fd));
}

absl::Status DurableFile::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file_.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path_, "write", errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status DurableFile::ExtendTo(int64_t bytes) {
  if (ftruncate(file_.get(), bytes) != 0) return FileError(path_, "extend", errno);
  return absl::OkStatus();
}

absl::Status DurableFile::CommitAs(const std::string& path) {
  // A failed fsync is never retried: the kernel marks the pages clean, so a second one would succeed without the data.
  if (fsync(file_.get()) != 0) return FileError(path, "fsync", errno);
  if (rename(temporary_.c_str(), path.c_str()) != 0) return FileError(path, "rename", errno);
  file_.Close();
  return SyncFolder(FolderOf(path));
}

absl::Status WriteFileDurably(const std::string& path, absl::string_view content) {
  LUTHIER_ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  LUTHIER_RETURN_IF_ERROR(file.Append({reinterpret_cast<const std::byte*>(content.data()), content.size()}));
  return file.Commit();
}

absl::Status CreateFolders(const std::string& folder) {
  std::error_code hidden;  // below a folder that may not be read: mkdir says why
  if (folder.empty() || std::filesystem::is_directory(folder, hidden)) return absl::OkStatus();
  const std::string parent = FolderOf(folder);
  if (parent != folder) LUTHIER_RETURN_IF_ERROR(CreateFolders(parent));
  if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) return FileError(folder, "create", errno);
  return SyncFolder(parent);
}

absl::Status SyncFolder(const std::string& folder) {
  const Descriptor opened(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened.is_open()) return FileError(folder, "open", errno);
  if (fsync(opened.get()) != 0) return FileError(folder, "fsync", errno);
  return absl::OkStatus();
}

}  // namespace luthier
