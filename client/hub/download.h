// Brings a base model of the hub onto this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "client/hub/address.h"
#include "client/hub/hub.h"
#include "client/lib/transfer_progress.h"

namespace luthier {

struct HubFolder {
  std::string path;
  std::string commit;
  int64_t bytes = 0;
};

// Shows a transfer of which people read `what`.
using ShowTransfer = std::function<TransferProgress(const std::string& what)>;

// Into `cache`/ORG--REPO/COMMIT, of which no file has its name before it is whole, verified and on disk; what is there
// already is verified and not fetched again. Fetched is what belongs to a model (lib/checkpoint/model_files.h), of its
// weights only those that Luthier reads, and they last: a model that it does not know is refused before they come.
// Errors: those of Hub; INVALID_ARGUMENT for a repository that is no base model; RESOURCE_EXHAUSTED, before anything
// comes, if the disk has no room for it; FAILED_PRECONDITION if another process is downloading there.
absl::StatusOr<HubFolder> DownloadFromHub(const Hub& hub, const HubAddress& address, const std::string& cache,
                                          const ShowTransfer& show);

}  // namespace luthier
