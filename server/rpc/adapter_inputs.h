// Stored adapters as inputs of attempts.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/plan/job_spec.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/store/store.h"

namespace luthier {

// The adapter that a job goes on from; the block gets its shape. Errors: INVALID_ARGUMENT unless it is an adapter of
// `base_model`, an id.
absl::StatusOr<v1::AttemptInput> StartAdapter(Store& store, ArtifactStore& artifacts, const std::string& base_model,
                                              LoraSpec& lora);

// The files of an adapter that an export reads, its chat templates among them. Errors: INVALID_ARGUMENT if one lacks.
absl::StatusOr<v1::AttemptInput> AdapterToExport(const v1::ModelVersion& version);

// The configuration among the files of an adapter. `named_by`: the field that names it, with its value. Requires: it is
// one of them. Errors: INVALID_ARGUMENT with every violation; those of the store.
absl::StatusOr<AdapterConfig> ConfigOfAdapter(const std::string& named_by, const v1::AttemptInput& adapter,
                                              ArtifactStore& artifacts);

}  // namespace luthier
