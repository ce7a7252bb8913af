#include "server/rpc/dataset_use.h"

#include <cstddef>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// `reference`: `dataset` or `dataset/part`. Appends nothing if an optional part does not exist.
absl::Status AddPart(Store& store, const std::string& role, absl::string_view reference, bool required,
                     std::vector<DatasetUse>& parts) {
  absl::ConsumePrefix(&reference, "datasets/");
  const size_t slash = reference.find('/');
  const std::string id(reference.substr(0, slash));
  const bool names_part = slash != absl::string_view::npos;
  const std::string part(names_part ? reference.substr(slash + 1) : absl::string_view(role));
  LUTHIER_ASSIGN_OR_RETURN(const Resource resource, store.GetResource(ResourceKind::kDataset, id));
  v1::Dataset dataset;
  dataset.ParseFromString(resource.payload);
  for (const v1::DatasetPart& file : dataset.parts()) {
    // A dataset of one part is that part, whatever its name: rows for a test may have been uploaded as `train`.
    if (file.part() == part || (required && !names_part && dataset.parts_size() == 1)) {
      parts.push_back({role, id, file});
      return absl::OkStatus();
    }
  }
  if (!required) return absl::OkStatus();
  const auto name = [](std::string* out, const v1::DatasetPart& file) { out->append(file.part()); };
  return absl::InvalidArgumentError(
      absl::StrCat("dataset.", role, ": datasets/", id, " has no part '", part,
                   "'; give one that it has: ", absl::StrJoin(dataset.parts(), ", ", name)));
}

// Of a dataset as a whole every part has its own role: to train on what was uploaded as held out has to be said.
absl::StatusOr<std::vector<DatasetUse>> PartsOf(Store& store, absl::string_view name) {
  absl::ConsumePrefix(&name, "datasets/");
  if (absl::StrContains(name, "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("dataset: '", name, "' is a part of a dataset; give the dataset, or {train: ", name, "}"));
  }
  std::vector<DatasetUse> parts;
  LUTHIER_RETURN_IF_ERROR(AddPart(store, "train", absl::StrCat(name, "/train"), true, parts));
  for (const char* role : {"validation", "test"}) LUTHIER_RETURN_IF_ERROR(AddPart(store, role, name, false, parts));
  return parts;
}

}  // namespace

absl::StatusOr<std::vector<DatasetUse>> FindParts(Store& store, const DatasetSelection& selection) {
  if (!selection.name.empty()) return PartsOf(store, selection.name);
  std::vector<DatasetUse> parts;
  std::vector<absl::Status> missing;
  // A mixture has room for a million: no more are looked up than are named.
  const auto add = [&](const char* role, const std::string& reference) {
    if (reference.empty() || missing.size() == kMostViolations) return;
    absl::Status added = AddPart(store, role, reference, true, parts);
    if (!added.ok()) missing.push_back(std::move(added));
  };
  add("train", selection.train);
  for (const WeightedDataset& weighted : selection.mixture) {
    add("train", weighted.dataset);
    if (!parts.empty()) parts.back().weight = weighted.weight;
  }
  add("validation", selection.validation);
  add("test", selection.test);
  LUTHIER_RETURN_IF_ERROR(AllOf(missing));
  return parts;
}

void AddInputs(const std::vector<DatasetUse>& parts, v1::StartAttempt& start) {
  for (const DatasetUse& part : parts) {
    v1::AttemptInput& input = *start.add_inputs();
    input.set_role(part.role);
    input.set_name(part.name());
    if (part.role == "train") input.set_weight(part.weight);
    v1::ModelFile& file = *input.add_files();
    file.set_path(part.file.part() + ".jsonl");
    file.set_size_bytes(part.file.size_bytes());
    file.set_sha256(part.file.sha256());
  }
}

void WarnAboutSharedRows(const std::vector<DatasetUse>& parts, v1::FineTuningJob& job) {
  for (const DatasetUse& held_out : parts) {
    for (const DatasetUse& train : parts) {
      if (held_out.role == "train" || train.role != "train" || held_out.file.sha256() != train.file.sha256()) continue;
      job.add_warnings(
          absl::StrCat("dataset.", held_out.role, ": ", held_out.name(), " has the rows of ", train.name(),
                       ", so its figures say nothing about other rows; give rows that are not trained on"));
    }
  }
}

}  // namespace luthier
