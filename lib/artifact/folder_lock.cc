#include "lib/artifact/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"

namespace luthier {

absl::StatusOr<FolderLock> FolderLock::Take(const std::string& folder) { return Lock(folder, LOCK_EX); }

absl::StatusOr<FolderLock> FolderLock::TryTake(const std::string& folder) { return Lock(folder, LOCK_EX | LOCK_NB); }

absl::StatusOr<FolderLock> FolderLock::Lock(const std::string& folder, int operation) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(folder, "open", errno);
  FolderLock lock(fd);
  if (flock(fd, operation) == 0) return lock;
  if (errno == EWOULDBLOCK) return absl::UnavailableError(absl::StrCat(folder, " is locked by another process"));
  return FileError(folder, "lock", errno);
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace luthier
