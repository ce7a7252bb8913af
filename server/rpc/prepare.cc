#include "server/rpc/prepare.h"

#include <optional>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/validate.h"
#include "lib/plan/resolve.h"
#include "lib/plan/trainer_spec.h"
#include "lib/wire/job_spec_wire.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/datasets.pb.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

struct Part {
  std::string role;     // train, validation, test
  std::string dataset;  // id
  v1::DatasetPart file;
};

absl::StatusOr<v1::Dataset> FindDataset(const Backend& backend, const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(const Resource resource, backend.store.Get(ResourceKind::kDataset, id));
  v1::Dataset dataset;
  dataset.ParseFromString(resource.payload);
  return dataset;
}

// `reference`: `dataset` or `dataset/part`. Appends nothing if an optional part does not exist.
absl::Status AddPart(const Backend& backend, const std::string& role, absl::string_view reference, bool required,
                     std::vector<Part>& parts) {
  absl::ConsumePrefix(&reference, "datasets/");
  const size_t slash = reference.find('/');
  const std::string id(reference.substr(0, slash));
  const std::string part(slash == absl::string_view::npos ? absl::string_view(role) : reference.substr(slash + 1));
  LUTHIER_ASSIGN_OR_RETURN(const v1::Dataset dataset, FindDataset(backend, id));
  for (const v1::DatasetPart& file : dataset.parts()) {
    // A dataset of one part is that part, whatever its name.
    if (file.part() == part || (required && dataset.parts_size() == 1)) {
      parts.push_back({role, id, file});
      return absl::OkStatus();
    }
  }
  if (!required) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("dataset.", role, ": datasets/", id, " has no part '", part, "'"));
}

absl::StatusOr<std::vector<Part>> FindParts(const Backend& backend, const DatasetSelection& selection) {
  std::vector<Part> parts;
  if (!selection.name.empty()) {
    for (const char* role : {"train", "validation", "test"}) {
      LUTHIER_RETURN_IF_ERROR(AddPart(backend, role, selection.name, role == std::string("train"), parts));
    }
    return parts;
  }
  LUTHIER_RETURN_IF_ERROR(AddPart(backend, "train", selection.train, true, parts));
  if (!selection.validation.empty()) {
    LUTHIER_RETURN_IF_ERROR(AddPart(backend, "validation", selection.validation, true, parts));
  }
  if (!selection.test.empty()) LUTHIER_RETURN_IF_ERROR(AddPart(backend, "test", selection.test, true, parts));
  return parts;
}

EncodeOptions EncodingOf(const TrainingSpec& training, int64_t context) {
  return EncodeOptionsOf(training.loss_on.value_or("assistant"), training.too_long.value_or("refuse"),
                         training.max_length.value_or(context));
}

// Encodes every part as training will; what is wrong with any of them is refused now.
absl::StatusOr<DatasetFacts> CheckRows(const Backend& backend, const std::string& base_model, const ModelFacts& model,
                                       const TrainingSpec& training, const std::vector<Part>& parts) {
  const std::string folder = backend.BaseModelFolder(base_model);
  LUTHIER_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(folder));
  absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Load(folder);
  if (!chat_template.ok() && !absl::IsNotFound(chat_template.status())) return chat_template.status();
  const RowEncoder encoder(tokenizer, chat_template.ok() ? &*chat_template : nullptr,
                           EncodingOf(training, model.config.max_position_embeddings));
  DatasetFacts facts;
  ValidationReport all;
  for (const Part& part : parts) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string path, backend.artifacts.BlobPath(part.file.sha256()));
    LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report,
                             Validate(path, encoder, absl::StrCat(part.dataset, "/", part.file.part())));
    all.Merge(report);
    if (part.role != "train") continue;
    facts = {report.rows, report.tokens, report.trained_tokens, report.longest_row_tokens, ""};
    facts.format = report.chat_rows > 0 ? "messages" : report.completion_rows > 0 ? "prompt_completion" : "text";
  }
  LUTHIER_RETURN_IF_ERROR(all.ToStatus());
  // Chosen max_length bounds every part: a longer row of `test` must not be refused by the trainer later.
  facts.longest_row = all.longest_row_tokens;
  return facts;
}

// The largest device that is connected; its memory is what a job is refused for.
DeviceFacts LargestDevice(const Backend& backend) {
  DeviceFacts device;
  (void)backend.loop.Run([&](State& state, absl::Time) {
    for (const auto& [id, node] : state.nodes()) {
      v1::Inventory inventory;
      inventory.ParseFromString(node.inventory);
      for (const v1::Gpu& gpu : inventory.gpus()) {
        device.kind = DeviceFacts::Kind::kCuda;
        device.bf16 = true;
        device.memory_bytes = std::max<int64_t>(device.memory_bytes, gpu.memory_bytes());
      }
    }
    return absl::OkStatus();
  });
  return device;
}

// What depends on the device that will run the job stays open for the trainer to choose, unless the user chose it.
void LeaveDeviceValuesOpen(const Recipe& given, ResolvedSpec& resolved) {
  resolved.recipe.training.precision = given.training.precision;
  resolved.recipe.training.micro_batch_tokens = given.training.micro_batch_tokens;
  resolved.recipe.resources.threads = given.resources.threads;
  const std::set<std::string> open = {"training.precision", "training.micro_batch_tokens", "resources.threads"};
  std::erase_if(resolved.values, [&](const ResolvedValue& v) { return open.count(v.field) > 0 && v.reason != "given"; });
}

void FillInputs(const v1::BaseModel& model, const std::vector<Part>& parts, v1::StartAttempt& start) {
  v1::AttemptInput& base = *start.add_inputs();
  base.set_role("base_model");
  *base.mutable_files() = model.files();
  for (const Part& part : parts) {
    v1::AttemptInput& input = *start.add_inputs();
    input.set_role(part.role);
    v1::ModelFile& file = *input.add_files();
    file.set_path(part.file.part() + ".jsonl");
    file.set_size_bytes(part.file.size_bytes());
    file.set_sha256(part.file.sha256());
  }
}

// Agents add the paths of their machine.
std::string TrainerSpecJson(const std::string& base_model, const Recipe& recipe) {
  TrainerSpec spec;
  spec.base_model_name = base_model;
  spec.recipe = recipe;
  nlohmann::json json = ToJson(spec);
  for (const char* path : {"base_model", "dataset", "attempt"}) json.erase(path);
  return json.dump();
}

}  // namespace

absl::StatusOr<PreparedJob> PrepareJob(const Backend& backend, const v1::CreateFineTuningJobRequest& request) {
  if (!request.job_id().empty()) LUTHIER_RETURN_IF_ERROR(CheckId("job_id", request.job_id()));
  LUTHIER_ASSIGN_OR_RETURN(const JobSpec spec, JobFromProto(request.job()));
  const std::string base_model(absl::StripPrefix(spec.base_model, "baseModels/"));
  LUTHIER_ASSIGN_OR_RETURN(const Resource resource, backend.store.Get(ResourceKind::kBaseModel, base_model));
  v1::BaseModel model;
  model.ParseFromString(resource.payload);
  LUTHIER_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(backend.BaseModelFolder(base_model)));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Part> parts, FindParts(backend, spec.dataset));
  LUTHIER_ASSIGN_OR_RETURN(const DatasetFacts dataset, CheckRows(backend, base_model, facts, spec.recipe.training, parts));
  LUTHIER_ASSIGN_OR_RETURN(ResolvedSpec resolved, Resolve(spec.recipe, facts, dataset, LargestDevice(backend)));
  LeaveDeviceValuesOpen(spec.recipe, resolved);

  PreparedJob prepared;
  prepared.spec.trainer_spec_json = TrainerSpecJson(base_model, resolved.recipe);
  *prepared.spec.job.mutable_spec() = request.job().spec();
  *prepared.spec.job.mutable_labels() = request.job().labels();
  for (const ResolvedValue& value : resolved.values) {
    v1::ResolvedValue& message = *prepared.spec.job.add_resolved();
    message.set_field(value.field);
    message.set_value(value.value);
    message.set_reason(value.reason);
  }
  for (const std::string& warning : resolved.warnings) prepared.spec.job.add_warnings(warning);
  FillInputs(model, parts, prepared.spec.start);
  std::set<std::string> datasets;
  for (const Part& part : parts) datasets.insert(part.dataset);
  Job& job = prepared.job;
  job.uid = RandomUuid();
  job.id = request.job_id().empty() ? "job-" + job.uid.substr(0, 8) : request.job_id();
  job.request_id = request.request_id();
  job.base_model = base_model;
  job.datasets = absl::StrJoin(datasets, ",");
  job.devices = static_cast<int>(resolved.recipe.resources.devices.value_or(1));
  return prepared;
}

}  // namespace luthier
