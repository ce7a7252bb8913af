#include "server/rpc/dataset_use.h"

#include <cstddef>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "server/core/reason.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

// Looks up what a selection names: each dataset once, and its parts.
class PartSearch {
 public:
  PartSearch(Store& store, absl::FunctionRef<bool(const v1::Dataset&)> sees) : store_(store), sees_(sees) {}

  // `reference`, which `field` gives: `dataset` or `dataset/part`.
  void Add(absl::string_view field, const char* role, absl::string_view reference, double weight = 1) {
    // A mixture has room for a million: no more are looked up than are named.
    if (reference.empty() || faults_.size() == kMostViolations) return;
    absl::ConsumePrefix(&reference, "datasets/");
    const size_t slash = reference.find('/');
    const std::string id(reference.substr(0, slash));
    const bool names_part = slash != absl::string_view::npos;
    const absl::string_view part = names_part ? reference.substr(slash + 1) : absl::string_view(role);
    const v1::Dataset* const dataset = Find(field, id);
    if (dataset == nullptr || AddPart(role, *dataset, id, part, weight)) return;
    // A dataset of one part is that part, whatever its name: rows for a test may have been uploaded as `train`.
    if (!names_part && dataset->parts_size() == 1) {
      parts_.push_back({role, id, dataset->parts(0), weight});
    } else {
      RefusePart(field, *dataset, id, part);
    }
  }

  // Of a dataset as a whole every part has its own role: to train on what was uploaded as held out has to be said.
  void AddWhole(absl::string_view name) {
    absl::ConsumePrefix(&name, "datasets/");
    if (absl::StrContains(name, "/")) {
      faults_.push_back(absl::InvalidArgumentError(absl::StrCat(
          "dataset: ", Shown(name), " is a part of a dataset; give the dataset, or {train: ", Shown(name), "}")));
      return;
    }
    const std::string id(name);
    const v1::Dataset* const dataset = Find("dataset", id);
    if (dataset == nullptr) return;
    if (!AddPart("train", *dataset, id, "train")) RefusePart("dataset.train", *dataset, id, "train");
    for (const char* role : {"validation", "test"}) AddPart(role, *dataset, id, role);
  }

  absl::StatusOr<std::vector<DatasetUse>> Finish() && {
    LUTHIER_RETURN_IF_ERROR(AllOf(faults_));
    return std::move(parts_);
  }

 private:
  // nullptr if there is none that the asker sees: that is said of the first field that names it.
  const v1::Dataset* Find(absl::string_view field, const std::string& id) {
    const auto [known, is_new] = datasets_.try_emplace(id);
    if (is_new) {
      const absl::StatusOr<Resource> found = store_.GetResource(ResourceKind::kDataset, id);
      v1::Dataset dataset;
      if (found.ok()) dataset.ParseFromString(found->payload);
      if (found.ok() && sees_(dataset)) {
        known->second = std::move(dataset);
      } else if (found.ok() || absl::IsNotFound(found.status())) {
        faults_.push_back(InField(field, DoesNotExist(NameShown("datasets/", id))));
      } else {
        faults_.push_back(found.status());
      }
    }
    return known->second ? &*known->second : nullptr;
  }

  bool AddPart(const char* role, const v1::Dataset& dataset, const std::string& id, absl::string_view part,
               double weight = 1) {
    for (const v1::DatasetPart& file : dataset.parts()) {
      if (file.part() != part) continue;
      parts_.push_back({role, id, file, weight});
      return true;
    }
    return false;
  }

  void RefusePart(absl::string_view field, const v1::Dataset& dataset, const std::string& id, absl::string_view part) {
    const auto name = [](std::string* out, const v1::DatasetPart& file) { out->append(file.part()); };
    faults_.push_back(absl::InvalidArgumentError(
        absl::StrCat(field, ": datasets/", id, " has no part ", Shown(part),
                     "; give one that it has: ", absl::StrJoin(dataset.parts(), ", ", name))));
  }

  Store& store_;
  const absl::FunctionRef<bool(const v1::Dataset&)> sees_;
  std::map<std::string, std::optional<v1::Dataset>> datasets_;  // by id
  std::vector<DatasetUse> parts_;
  std::vector<absl::Status> faults_;
};

}  // namespace

absl::StatusOr<std::vector<DatasetUse>> FindParts(Store& store, const v1::DatasetSelection& selection,
                                                  absl::FunctionRef<bool(const v1::Dataset&)> sees) {
  PartSearch search(store, sees);
  if (!selection.dataset().empty()) search.AddWhole(selection.dataset());
  search.Add("dataset.train", "train", selection.train());
  for (const v1::WeightedDataset& weighted : selection.mixture()) {
    search.Add("dataset.mixture", "train", weighted.dataset(), weighted.has_weight() ? weighted.weight() : 1);
  }
  search.Add("dataset.validation", "validation", selection.validation());
  search.Add("dataset.test", "test", selection.test());
  return std::move(search).Finish();
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
