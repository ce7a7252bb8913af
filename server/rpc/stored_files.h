// Which stored files the rows of the record name.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "luthier/v1/models.pb.h"
#include "server/store/store.h"

namespace luthier {

// Of datasets, base models and published versions, and the attempts that published these.
absl::StatusOr<FileArtifactStore::References> ReferencesOf(Store& store);

// Whose a dataset is.
std::string TenantOf(const Resource& dataset);

// `base_models/<id>` of the data folder, with the files of a registered base model.
std::string BaseModelFolder(const std::string& data_dir, const std::string& id);
// Fills it with hard links to the blobs under their own names: validation reads the model as a folder, at no cost in
// space.
absl::Status LinkBaseModel(const FileArtifactStore& artifacts, const std::string& data_dir, const std::string& id,
                           const v1::BaseModel& model);

}  // namespace luthier
