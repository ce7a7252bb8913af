// Compares the engine with stored numbers of transformers + PEFT (shared/reference/models, README there).
#pragma once

#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "worker/trainer/models/model.h"
#include "worker/trainer/torch.h"

namespace luthier {

// How a case is computed. Tolerances are those of its format.
struct CheckSetting {
  at::Device device = at::kCPU;
  ComputeOptions compute;
};

// Makes every check that the golden files of a case folder allow, and prints a JSON line each. False if one is not ok.
// Errors: those of opening the case.
absl::StatusOr<bool> CheckModel(const std::string& folder, const CheckSetting& setting, std::ostream& out);

}  // namespace luthier
