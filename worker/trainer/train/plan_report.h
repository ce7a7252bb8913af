// What `luthier-trainer plan` says of a job before it is run: memory, rows, steps, time, and every value with its
// reason.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "lib/plan/trainer_spec.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Encodes the rows and reads the headers of the weights, but no weights. With `measure`, the model is loaded and takes
// three steps whose learning rate is 0, so that the time is that of this job on this machine. Errors: as Prepare.
absl::StatusOr<nlohmann::json> MakePlanReport(const TrainerSpec& spec, bool measure);

// The same for people.
std::string PlanReportText(const nlohmann::json& report);

}  // namespace luthier
