// Brings the files of a model version or a base model onto this machine.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/lib/client.h"
#include "client/lib/transfer_progress.h"
#include "luthier/v1/models.pb.h"

namespace luthier {

// What is downloaded: `models/{model}/versions/{version}` or `baseModels/{base_model}`, and its files.
struct RemoteFolder {
  std::string name;
  std::vector<v1::ModelFile> files;
};

RemoteFolder ToRemoteFolder(const v1::ModelVersion& version);
RemoteFolder ToRemoteFolder(const v1::BaseModel& model);

// Downloads into `folder`, which appears once every file is verified and on disk; until then the files are in
// `{folder}.partial`, from where a later call goes on. Done at once if `folder` holds exactly these files.
// Errors: ALREADY_EXISTS if `folder` holds anything else; FAILED_PRECONDITION if another process is downloading there,
// or this machine's disk refuses (OnOurDisk()); DATA_LOSS; RESOURCE_EXHAUSTED; the server's: NOT_FOUND,
// PERMISSION_DENIED, UNAVAILABLE.
absl::Status DownloadFolder(Client& client, const RemoteFolder& remote, const std::string& folder,
                            const TransferProgress& progress = {});

}  // namespace luthier
