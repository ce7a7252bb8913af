#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/lib/client.h"
#include "client/lib/model_download.h"

namespace luthier {

// The cache of this user: $LUTHIER_CACHE_DIR, else $XDG_CACHE_HOME/luthier, else ~/.cache/luthier.
std::string CacheFolder();

// The folder of a model in the cache, downloaded if it is not there. It is named by the content, so several servers
// share a cache.
absl::StatusOr<std::string> CachedFolder(Client& client, const RemoteFolder& remote, const TransferProgress& progress);

}  // namespace luthier
