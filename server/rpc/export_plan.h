// The plan of an export, which has a version in the place of a dataset.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/artifact/artifact_store.h"
#include "lib/plan/facts.h"
#include "lib/plan/job_spec.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "server/rpc/plan.h"

namespace luthier {

// What is read of an export's spec: where it may run. Errors: INVALID_ARGUMENT with every field that has no effect.
absl::StatusOr<Recipe> RecipeOfExport(const v1::FineTuningSpec& spec);

// Errors: INVALID_ARGUMENT unless the version is an adapter that the spec can export, into another model.
absl::Status CheckExportable(const v1::ModelVersion& version, const v1::FineTuningSpec& spec);

// `recipe`: RecipeOfExport() of the spec. Requires: CheckExportable() found nothing. `base`: the model of the version.
// `device`: the largest of all nodes. Errors: INVALID_ARGUMENT for an adapter that the format has no place for;
// RESOURCE_EXHAUSTED.
absl::StatusOr<Plan> MakeExportPlan(const v1::FineTuningSpec& spec, const Recipe& recipe,
                                    const v1::ModelVersion& version, const LoadedModel& base, const DeviceFacts& device,
                                    ArtifactStore& artifacts);

}  // namespace luthier
