// What downloads into a folder share.
#pragma once

#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "lib/artifact/folder_lock.h"

namespace luthier {

// Keeps a second download out of the folder, which must exist. Errors: FAILED_PRECONDITION if one is at work there.
absl::StatusOr<FolderLock> LockForDownload(const std::string& folder);

// Removes what is there besides `wanted`, paths inside the folder.
void RemoveOthers(const std::string& folder, const std::set<std::string>& wanted);

}  // namespace luthier
