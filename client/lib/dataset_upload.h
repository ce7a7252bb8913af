// Sends the files of a dataset, hashed and in checked chunks.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/lib/client.h"
#include "client/lib/transfer_progress.h"
#include "luthier/v1/datasets.pb.h"

namespace luthier {

// One file and the part that it becomes.
struct DatasetFile {
  std::string part;  // train, validation, test
  std::string path;
};

// Uploads the files as `datasets/{id}`. The same content under the same id is no error, so a broken upload is sent
// again. Errors: NOT_FOUND if a file is; INVALID_ARGUMENT with part and line; ALREADY_EXISTS; RESOURCE_EXHAUSTED;
// UNAVAILABLE.
absl::StatusOr<v1::Dataset> UploadDataset(Client& client, const std::string& id, const std::vector<DatasetFile>& files,
                                          const TransferProgress& progress = {});

}  // namespace luthier
