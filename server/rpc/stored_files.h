// Which stored files the rows of the record name.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/models.pb.h"
#include "server/rpc/page.h"
#include "server/store/store.h"

namespace luthier {

// Of datasets, base models, published versions and checkpoints, and the attempts that published versions.
absl::StatusOr<ArtifactStore::References> ReferencesOf(Store& store);

// Whether all that a job was given to learn from is still named by something. A name may be other content's by now, and
// what only the job knows is not kept.
absl::StatusOr<bool> HasItsInputs(Store& store, const RecordedJob& job);

// Where one stands in a list of them.
Position NewestFirst(const Resource& resource);
// Whose a dataset is.
std::string TenantOf(const v1::Dataset& dataset);
std::string TenantOf(const Resource& dataset);

// Of all files together. An agent may say anything of one: what is wrong of it is refused when it is compared with the
// store, and must not overflow before.
int64_t BytesOf(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files);
int64_t BytesOf(const v1::Dataset& dataset);

// Counts for their tenants what was stored before that was done. Before the state is loaded.
absl::Status CountOlderFiles(Store& store);

// The folder of the data folder in which planning reads base models. All of it can be made again from the store.
std::string BaseModelsFolder(const std::string& data_dir);
// Makes `folder`, unless it is there, with the files of a base model as far as planning reads them: of weights the
// headers, with a hole in place of the numbers, which takes no space. One call at a time for a folder.
absl::Status MakeModelFolder(ArtifactStore& artifacts, const v1::BaseModel& model, const std::string& folder);

}  // namespace luthier
