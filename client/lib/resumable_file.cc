#include "client/lib/resumable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"

namespace luthier {

absl::StatusOr<ResumableFile> ResumableFile::Open(const std::string& path, int64_t longest) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return FileError(path, "open", errno);
  ResumableFile file(path, fd);
  LUTHIER_RETURN_IF_ERROR(file.ReadExisting(longest));
  return file;
}

ResumableFile::ResumableFile(ResumableFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      hash_(std::move(other.hash_)) {}

ResumableFile::~ResumableFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status ResumableFile::ReadExisting(int64_t longest) {
  if (lseek(fd_, 0, SEEK_END) > longest) return Clear();
  lseek(fd_, 0, SEEK_SET);
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t count = read(fd_, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(path_, "read", errno);
    if (count == 0) return absl::OkStatus();
    hash_.Update(absl::string_view(buffer.data(), static_cast<size_t>(count)));
    size_ += count;
  }
}

absl::Status ResumableFile::Append(absl::string_view bytes) {
  hash_.Update(bytes);
  size_ += static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const ssize_t count = write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(path_, "write", errno);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status ResumableFile::Verify(absl::string_view sha256) {
  const std::string found = hash_.FinishHex();
  if (found != sha256) {
    LUTHIER_RETURN_IF_ERROR(Clear());
    return absl::DataLossError(absl::StrCat(path_, ": received content with SHA-256 ", found, ", expected ", sha256));
  }
  return Flush();
}

absl::Status ResumableFile::Flush() {
  if (fsync(fd_) != 0) return FileError(path_, "flush", errno);
  return absl::OkStatus();
}

absl::Status ResumableFile::Clear() {
  if (ftruncate(fd_, 0) != 0) return FileError(path_, "truncate", errno);
  lseek(fd_, 0, SEEK_SET);
  size_ = 0;
  hash_ = Sha256();
  return absl::OkStatus();
}

}  // namespace luthier
