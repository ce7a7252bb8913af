#include "lib/artifact/private_folder.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"

namespace luthier {

namespace fs = std::filesystem;

absl::Status CreatePrivateFolder(const std::string& folder) {
  std::error_code hidden;  // below a folder that may not be read: mkdir says why
  if (fs::is_directory(folder, hidden)) return absl::OkStatus();
  const fs::path path = fs::path(folder).has_filename() ? fs::path(folder) : fs::path(folder).parent_path();
  LUTHIER_RETURN_IF_ERROR(CreateFolders(path.parent_path()));
  if (mkdir(path.c_str(), S_IRWXU) != 0 && errno != EEXIST) return FileError(folder, "create", errno);
  return SyncFolder(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

bool IsOpenToEverybody(const std::string& folder) {
  std::error_code error;
  for (fs::path path = fs::canonical(folder, error); !error; path = path.parent_path()) {
    if ((fs::status(path, error).permissions() & fs::perms::others_exec) == fs::perms::none) return false;
    if (path == path.root_path()) return true;
  }
  return false;
}

std::string WarningIfOpen(const std::string& folder) {
  if (!IsOpenToEverybody(folder)) return "";
  return absl::StrCat("every user of this machine can read what is in ", folder, "; `chmod o= ", folder,
                      "` keeps others out");
}

}  // namespace luthier
