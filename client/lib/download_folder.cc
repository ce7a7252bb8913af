#include "client/lib/download_folder.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"

namespace luthier {

namespace fs = std::filesystem;

absl::StatusOr<FolderLock> LockForDownload(const std::string& folder) {
  absl::StatusOr<FolderLock> lock = FolderLock::TryTake(folder);
  if (!absl::IsUnavailable(lock.status())) return lock;
  return absl::FailedPreconditionError(absl::StrCat(folder, ": another download is writing here; wait for it"));
}

void RemoveOthers(const std::string& folder, const std::set<std::string>& wanted) {
  std::vector<fs::path> others;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder, error)) {
    if (!entry.is_directory() && wanted.count(fs::relative(entry.path(), folder).string()) == 0)
      others.push_back(entry.path());
  }
  for (const fs::path& path : others) fs::remove(path, error);
}

}  // namespace luthier
