// The parts of datasets that a job uses, and what for.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/store/store.h"

namespace luthier {

struct DatasetUse {
  std::string role;     // train, validation, test
  std::string dataset;  // id
  v1::DatasetPart file;
  double weight = 1;
  std::string name() const { return absl::StrCat(dataset, "/", file.part()); }
};

// `sees`: whether the asker may see a dataset. Errors: NOT_FOUND for one that is not there, or not to be seen, of which
// the first field is told that names it; INVALID_ARGUMENT for a part that it does not have; the first kMostViolations.
absl::StatusOr<std::vector<DatasetUse>> FindParts(Store& store, const v1::DatasetSelection& selection,
                                                  absl::FunctionRef<bool(const v1::Dataset&)> sees);

// What the agent fetches for them.
void AddInputs(const std::vector<DatasetUse>& parts, v1::StartAttempt& start);
// Of a validation or test part that is, byte for byte, one that is trained on.
void WarnAboutSharedRows(const std::vector<DatasetUse>& parts, v1::FineTuningJob& job);

}  // namespace luthier
