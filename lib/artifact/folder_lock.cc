#include "lib/artifact/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"

namespace luthier {

absl::StatusOr<FolderLock> FolderLock::Take(const std::string& folder) { return Lock(folder, LOCK_EX); }

absl::StatusOr<FolderLock> FolderLock::TryTake(const std::string& folder) { return Lock(folder, LOCK_EX | LOCK_NB); }

absl::StatusOr<FolderLock> FolderLock::Lock(const std::string& folder, int operation) {
  Descriptor opened(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened.is_open()) return FileError(folder, "open", errno);
  if (flock(opened.get(), operation) == 0) return FolderLock(std::move(opened));
  if (errno == EWOULDBLOCK) return absl::UnavailableError(absl::StrCat(folder, " is locked by another process"));
  return FileError(folder, "lock", errno);
}

}  // namespace luthier
