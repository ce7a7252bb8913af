// Which artifact store a server has: the folder `artifacts` of its data folder, or a bucket.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "server/options.h"

namespace luthier {

// The folder of a data folder in which files lie that are in no bucket.
std::string LocalArtifacts(const std::string& data_dir);

// The store that the options name, for a server or for what is restored. A data folder remembers its bucket, and a
// bucket whose it is: files are never looked for in the wrong one, and no two servers clean up in one. `restored`: the
// bucket in which a backup that is restored left its files; it must be the one, and is taken over. Errors name the
// option and the remedy.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenArtifacts(const ServerOptions& options,
                                                             const std::string& restored = "");

// The bucket that the options name, whoever's it is, to look only; null if they name none. Errors: FAILED_PRECONDITION
// if the data folder's files are in another.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenBucketToRead(const ServerOptions& options);

}  // namespace luthier
