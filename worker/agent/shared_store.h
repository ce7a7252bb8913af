// The server's artifact store, where this machine sees its folder: files go there without a stream.
#pragma once

#include <set>
#include <string>

#include "lib/artifact/artifact_store.h"

namespace luthier {

// Copies the files of `manifest` beneath `folder` into the store at `root` (empty: there is none). Returns the hashes
// of those that lie there now; what could not be written has to go through the server.
std::set<std::string> CopyIntoSharedStore(const std::string& root, const std::string& folder, const Manifest& manifest);

}  // namespace luthier
