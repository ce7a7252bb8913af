// Published versions, as a caller may see them: a version is its job's tenant's.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "luthier/v1/models.pb.h"
#include "server/rpc/handle.h"
#include "server/store/store.h"

namespace luthier {

// Newest first; of all models if `model` is empty.
absl::StatusOr<std::vector<ModelVersion>> VersionsOf(Store& store, const Call& call, const std::string& model);

// `name`: `models/{model}/versions/{number, latest or alias}`. Errors: INVALID_ARGUMENT, NOT_FOUND.
absl::StatusOr<v1::ModelVersion> FindVersion(Store& store, const Call& call, absl::string_view name);

// With the names that point to it.
v1::ModelVersion WithAliases(const ModelVersion& version, const std::vector<Alias>& aliases);

}  // namespace luthier
