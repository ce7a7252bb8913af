#include "client/cli/cache.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/hub/hub.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/environment.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

std::string ContentName(const RemoteFolder& remote) {
  std::vector<std::string> files;
  for (const v1::ModelFile& file : remote.files) files.push_back(absl::StrCat(file.path(), " ", file.sha256()));
  std::sort(files.begin(), files.end());
  return Sha256Hex(absl::StrJoin(files, "\n"));
}

}  // namespace

std::string CacheFolder() {
  if (std::string folder = Environment("LUTHIER_CACHE_DIR"); !folder.empty()) return folder;
  if (std::string folder = Environment("XDG_CACHE_HOME"); !folder.empty()) return folder + "/luthier";
  return Environment("HOME") + "/.cache/luthier";
}

absl::StatusOr<std::string> CachedFolder(Client& client, const RemoteFolder& remote, const TransferProgress& progress) {
  const std::string models = CacheFolder() + "/models";
  LUTHIER_RETURN_IF_ERROR(InCache(CreateFolders(models)));
  const std::string folder = absl::StrCat(models, "/", ContentName(remote));
  LUTHIER_RETURN_IF_ERROR(DownloadFolder(client, remote, folder, progress));
  return folder;
}

}  // namespace luthier
