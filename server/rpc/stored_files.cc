#include "server/rpc/stored_files.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/safetensors.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/rpc/convert.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// The first `size` bytes of a blob, or all there are.
absl::StatusOr<std::string> ReadSome(BlobReader& blob, int64_t size) {
  std::string bytes(static_cast<size_t>(std::min(size, blob.size())), '\0');
  size_t filled = 0;
  while (filled < bytes.size()) {
    LUTHIER_ASSIGN_OR_RETURN(const size_t count, blob.Read(std::span<char>(bytes).subspan(filled)));
    if (count == 0) return absl::DataLossError("a stored file became shorter; restore it from a backup");
    filled += count;
  }
  return bytes;
}

absl::StatusOr<std::string> ReadAll(BlobReader& blob) { return ReadSome(blob, blob.size()); }

// Of a safetensors file: the length of the header, 8 bytes, and the header. Whoever opens the copy checks what they
// say.
absl::StatusOr<std::string> ReadHeader(BlobReader& blob) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string length, ReadSome(blob, 8));
  uint64_t size = 0;
  for (size_t i = length.size(); i-- > 0;) size = size << 8 | static_cast<unsigned char>(length[i]);
  if (size > kMaxHeaderBytes)
    return absl::DataLossError("a stored file of weights has no header; restore it from a backup");
  LUTHIER_ASSIGN_OR_RETURN(const std::string header, ReadSome(blob, static_cast<int64_t>(size)));
  return length + header;
}

// Nobody knows which files a damaged row names, and they must not be taken for unused.
template <typename Message>
absl::StatusOr<Message> ReadRow(const std::string& payload, absl::string_view name) {
  Message message;
  if (message.ParseFromString(payload)) return message;
  return absl::DataLossError(
      absl::StrCat("the record of ", name, " is damaged; bring a backup back with `luthierd restore --from BACKUP`"));
}

}  // namespace

absl::StatusOr<ArtifactStore::References> ReferencesOf(Store& store) {
  ArtifactStore::References used;
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store.Versions(""));
  for (const ModelVersion& version : versions) {
    used.attempts.emplace(version.job, version.attempt);
    LUTHIER_ASSIGN_OR_RETURN(
        const auto stored, ReadRow<v1::ArtifactStored>(version.payload, NameOfVersion(version.model, version.version)));
    for (const v1::ModelFile& file : stored.files()) used.blobs.insert(file.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, store.Checkpoints());
  for (const std::string& payload : checkpoints) {
    LUTHIER_ASSIGN_OR_RETURN(const auto stored, ReadRow<v1::CheckpointStored>(payload, "a job's checkpoint"));
    for (const v1::ModelFile& file : stored.files()) used.blobs.insert(file.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> datasets, store.ListResources(ResourceKind::kDataset));
  for (const Resource& resource : datasets) {
    LUTHIER_ASSIGN_OR_RETURN(const auto dataset,
                             ReadRow<v1::Dataset>(resource.payload, ResourceName(ResourceKind::kDataset, resource.id)));
    for (const v1::DatasetPart& part : dataset.parts()) used.blobs.insert(part.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> models, store.ListResources(ResourceKind::kBaseModel));
  for (const Resource& resource : models) {
    LUTHIER_ASSIGN_OR_RETURN(
        const auto model,
        ReadRow<v1::BaseModel>(resource.payload, ResourceName(ResourceKind::kBaseModel, resource.id)));
    for (const v1::ModelFile& file : model.files()) used.blobs.insert(file.sha256());
  }
  return used;
}

absl::StatusOr<bool> HasItsInputs(Store& store, const RecordedJob& job) {
  LUTHIER_ASSIGN_OR_RETURN(const ArtifactStore::References used, ReferencesOf(store));
  const StoredSpec spec = ParseStoredSpec(job.spec);
  for (const v1::AttemptInput& input : spec.start.inputs()) {
    for (const v1::ModelFile& file : input.files()) {
      if (used.blobs.count(file.sha256()) == 0) return false;
    }
  }
  return true;
}

Position NewestFirst(const Resource& resource) { return {-absl::ToUnixMicros(resource.create_time), resource.id}; }

std::string TenantOf(const v1::Dataset& dataset) { return dataset.tenant().empty() ? Job().tenant : dataset.tenant(); }

std::string TenantOf(const Resource& resource) {
  v1::Dataset dataset;
  dataset.ParseFromString(resource.payload);
  return TenantOf(dataset);
}

int64_t BytesOf(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files) {
  constexpr int64_t kMostOfAFile = int64_t{1} << 45;
  int64_t bytes = 0;
  for (const v1::ModelFile& file : files) bytes += std::clamp<int64_t>(file.size_bytes(), 0, kMostOfAFile);
  return bytes;
}

int64_t BytesOf(const v1::Dataset& dataset) {
  int64_t bytes = 0;
  for (const v1::DatasetPart& part : dataset.parts()) bytes += part.size_bytes();
  return bytes;
}

absl::Status CountOlderFiles(Store& store) {
  Store::OlderSizes sizes;
  sizes.of_dataset = [](const Resource& resource) {
    v1::Dataset dataset;
    dataset.ParseFromString(resource.payload);
    return Stored{.tenant = TenantOf(dataset), .bytes = BytesOf(dataset)};
  };
  sizes.of_version = [](const ModelVersion& version) {
    v1::ArtifactStored stored;
    stored.ParseFromString(version.payload);
    return BytesOf(stored.files());
  };
  return store.CountOlder(sizes);
}

std::string BaseModelsFolder(const std::string& data_dir) { return data_dir + "/base_models"; }

absl::Status MakeModelFolder(ArtifactStore& artifacts, const v1::BaseModel& model, const std::string& folder) {
  if (fs::exists(folder)) return absl::OkStatus();
  const std::string partial = folder + ".partial";
  std::error_code error;
  fs::remove_all(partial, error);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(partial));
  for (const v1::ModelFile& file : model.files()) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path()));
    LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> blob, artifacts.OpenBlob(file.sha256(), 0));
    const bool weights = absl::EndsWith(file.path(), ".safetensors");
    LUTHIER_ASSIGN_OR_RETURN(const std::string bytes, weights ? ReadHeader(*blob) : ReadAll(*blob));
    const fs::path place = fs::path(partial) / file.path();
    LUTHIER_RETURN_IF_ERROR(CreateFolders(place.parent_path()));
    LUTHIER_ASSIGN_OR_RETURN(DurableFile copy, DurableFile::Create(place));
    LUTHIER_RETURN_IF_ERROR(copy.Append({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}));
    if (weights) LUTHIER_RETURN_IF_ERROR(copy.ExtendTo(blob->size()));
    LUTHIER_RETURN_IF_ERROR(copy.Commit());
  }
  fs::rename(partial, folder, error);
  if (error) return FileError(folder, "rename", error.value());
  return SyncFolder(fs::path(folder).parent_path());
}

}  // namespace luthier
