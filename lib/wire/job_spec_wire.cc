#include "lib/wire/job_spec_wire.h"

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/json_util.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

using nlohmann::json;

// The enums of the API are the words of the job file in capitals behind a prefix. A number that this server has no name
// for stays one, which the job file's parser refuses.
void EnumToWord(json& object, const char* field, const char* prefix) {
  if (!object.contains(field) || !object[field].is_string()) return;
  const std::string name = object[field].get<std::string>();
  object[field] = absl::AsciiStrToLower(absl::StripPrefix(name, prefix));
}

void WordToEnum(json& object, const char* field, const char* prefix) {
  if (!object.contains(field)) return;
  object[field] = absl::StrCat(prefix, absl::AsciiStrToUpper(object[field].get<std::string>()));
}

}  // namespace

absl::StatusOr<v1::FineTuningJob> JobToProto(const JobSpec& spec) {
  json fields = ToJson(spec);
  if (fields["dataset"].is_string()) fields["dataset"] = {{"dataset", spec.dataset.name}};
  const json labels = fields.value("labels", json::object());
  const std::string tuning = fields.value("tuning", "lora");
  fields.erase("labels");
  fields.erase("tuning");
  if (tuning == "full") {
    fields.erase("lora");
    fields["full"] = json::object();
  } else if (!fields.contains("lora")) {
    fields["lora"] = json::object();
  }
  if (fields["lora"].contains("target_modules") && !fields["lora"]["target_modules"].is_array()) {
    fields["lora"].erase("target_modules");  // "all-linear" is the empty list
  }
  if (fields["lora"].is_null()) fields.erase("lora");
  WordToEnum(fields, "task", "TASK_");
  if (fields.contains("training")) {
    WordToEnum(fields["training"], "schedule", "SCHEDULE_");
    WordToEnum(fields["training"], "precision", "PRECISION_");
  }
  v1::FineTuningJob job;
  const auto status = google::protobuf::util::JsonStringToMessage(fields.dump(), job.mutable_spec());
  if (!status.ok()) return absl::InvalidArgumentError(std::string(status.message()));
  for (const auto& [key, value] : labels.items()) (*job.mutable_labels())[key] = value.get<std::string>();
  return job;
}

absl::StatusOr<JobSpec> JobFromProto(const v1::FineTuningJob& job) {
  json fields = MessageToJson(job.spec());
  if (!fields.is_object()) fields = json::object();
  const v1::DatasetSelection& dataset = job.spec().dataset();
  if (!dataset.dataset().empty()) {
    if (fields["dataset"].size() > 1) {
      return absl::InvalidArgumentError(
          "dataset.dataset: excludes train, validation, test and mixture; give either the one or the others");
    }
    fields["dataset"] = dataset.dataset();
  }
  fields["tuning"] = job.spec().has_full() ? "full" : "lora";
  fields.erase("full");
  EnumToWord(fields, "task", "TASK_");
  if (fields.contains("training")) {
    json& training = fields["training"];
    EnumToWord(training, "schedule", "SCHEDULE_");
    EnumToWord(training, "precision", "PRECISION_");
    // JSON of protobuf writes 64-bit integers as text.
    if (training.contains("seed")) training["seed"] = job.spec().training().seed();
  }
  if (!job.labels().empty()) {
    for (const auto& [key, value] : job.labels()) fields["labels"][key] = value;
  }
  return ParseJobSpec(fields);
}

}  // namespace luthier
