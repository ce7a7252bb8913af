#include "server/rpc/stored_files.h"

#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/worker.pb.h"

namespace luthier {

namespace fs = std::filesystem;

absl::StatusOr<FileArtifactStore::References> ReferencesOf(Store& store) {
  FileArtifactStore::References used;
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store.Versions(""));
  for (const ModelVersion& version : versions) {
    used.attempts.emplace(version.job, version.attempt);
    v1::ArtifactStored stored;
    stored.ParseFromString(version.payload);
    for (const v1::ModelFile& file : stored.files()) used.blobs.insert(file.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> datasets, store.ListResources(ResourceKind::kDataset));
  for (const Resource& resource : datasets) {
    v1::Dataset dataset;
    dataset.ParseFromString(resource.payload);
    for (const v1::DatasetPart& part : dataset.parts()) used.blobs.insert(part.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> models, store.ListResources(ResourceKind::kBaseModel));
  for (const Resource& resource : models) {
    v1::BaseModel model;
    model.ParseFromString(resource.payload);
    for (const v1::ModelFile& file : model.files()) used.blobs.insert(file.sha256());
  }
  return used;
}

std::string TenantOf(const Resource& resource) {
  v1::Dataset dataset;
  dataset.ParseFromString(resource.payload);
  return dataset.tenant().empty() ? Job().tenant : dataset.tenant();
}

std::string BaseModelFolder(const std::string& data_dir, const std::string& id) {
  return data_dir + "/base_models/" + id;
}

absl::Status LinkBaseModel(const FileArtifactStore& artifacts, const std::string& data_dir, const std::string& id,
                           const v1::BaseModel& model) {
  const fs::path folder = BaseModelFolder(data_dir, id);
  std::error_code error;
  fs::create_directories(folder, error);
  for (const v1::ModelFile& file : model.files()) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string blob, artifacts.BlobPath(file.sha256()));
    fs::remove(folder / file.path(), error);
    fs::create_hard_link(blob, folder / file.path(), error);
    if (error) return absl::UnavailableError(absl::StrCat("cannot write ", folder.string(), ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace luthier
