#include "server/rpc/planner.h"

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/civil_time.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/dataset/dataset_facts.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/trainer_spec.h"
#include "lib/wire/job_spec_wire.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/models.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {

struct Planner::Part {
  std::string role;     // train, validation, test
  std::string dataset;  // id
  v1::DatasetPart file;
  double weight = 1;
  std::string name() const { return absl::StrCat(dataset, "/", file.part()); }
};

struct Planner::LoadedModel {
  std::string fingerprint;  // hashes of its files
  v1::BaseModel message;
  ModelFacts facts;
  std::string folder;
  std::optional<Tokenizer> tokenizer;
};

namespace {

// Plans are some KB, row facts some bytes; a tokenizer of a large vocabulary takes tens of MB.
constexpr size_t kPlans = 256;
constexpr size_t kRows = 4096;
constexpr size_t kModels = 2;

// Whatever speed an agent reports: a tenant is charged for what its jobs are expected to take.
constexpr absl::Duration kLongestJob = absl::Hours(24 * 365);

EncodeOptions EncodingOf(const Recipe& recipe, int64_t context) {
  return EncodeOptionsOf(LossOnBeforeRowsAreKnown(recipe), recipe.training.too_long.value_or("refuse"),
                         recipe.training.max_length.value_or(context));
}

// What depends on the device that will run the job stays open for the trainer to choose, unless the user chose it.
void LeaveDeviceValuesOpen(const Recipe& given, ResolvedSpec& resolved) {
  resolved.recipe.training.precision = given.training.precision;
  resolved.recipe.training.micro_batch_tokens = given.training.micro_batch_tokens;
  resolved.recipe.resources.threads = given.resources.threads;
  resolved.recipe.training.activation_checkpointing = given.training.activation_checkpointing;
  const std::set<std::string> open = {"training.precision", "training.micro_batch_tokens",
                                      "training.activation_checkpointing", "resources.threads"};
  std::erase_if(resolved.values,
                [&](const ResolvedValue& v) { return open.count(v.field) > 0 && v.reason != "given"; });
}

std::string Today() { return absl::FormatCivilTime(absl::ToCivilDay(absl::Now(), absl::UTCTimeZone())); }

// A template that asks for the date gets the day of submission, which stays with the job: rows that are rendered again
// after a night are the same. Returns whether it was chosen here.
absl::StatusOr<bool> ChooseTemplateDate(const std::string& base_folder, const std::string& today, Recipe& recipe) {
  if (!recipe.chat_template.empty() && recipe.chat_template.find('{') == std::string::npos) {
    return absl::InvalidArgumentError("chat_template: is no template; give its text");  // never a path of this machine
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat_template,
                           ChatTemplate::OfJob(base_folder, recipe.chat_template, ""));
  if (!recipe.template_date.empty() || !chat_template || !chat_template->uses_date()) return false;
  recipe.template_date = today;
  return true;
}

// Memory of the smallest device of the kind for which the trainer would find values: it chooses those that are left
// open for the device it is given. `largest`: a device for which there are values.
int64_t LeastMemory(DeviceFacts::Kind kind, const DeviceFacts& largest, const Recipe& recipe, const ModelFacts& model,
                    const DatasetFacts& rows) {
  constexpr int64_t kMost = int64_t{1} << 50;
  const auto fits = [&](int64_t bytes) {
    DeviceFacts device;
    device.kind = kind;
    device.bf16 = kind == DeviceFacts::Kind::kCuda;
    device.memory_bytes = bytes;
    return Resolve(recipe, model, rows, device).ok();
  };
  int64_t enough = int64_t{16} << 20, too_little = 0;
  while (enough < kMost && !fits(enough)) too_little = std::exchange(enough, enough * 2);
  while (enough - too_little > enough / 64) {  // the estimate is good to some per cent
    const int64_t middle = too_little + (enough - too_little) / 2;
    (fits(middle) ? enough : too_little) = middle;
  }
  return kind == largest.kind && largest.memory_bytes > 0 ? std::min(enough, largest.memory_bytes) : enough;
}

// Agents add the paths of their machine.
std::string TrainerSpecJson(const std::string& base_model, const Recipe& recipe) {
  TrainerSpec spec;
  spec.base_model_name = base_model;
  spec.recipe = recipe;
  spec.recipe.lora.start_from.clear();  // an input of the attempt
  nlohmann::json json = ToJson(spec);
  for (const char* path : {"base_model", "dataset", "attempt"}) json.erase(path);
  return json.dump();
}

void FillEstimate(const ResolvedSpec& resolved, const DatasetFacts& rows, v1::EstimateFineTuningJobResponse& estimate) {
  estimate.set_train_rows(rows.rows);
  estimate.set_train_tokens(rows.tokens);
  estimate.set_trained_tokens(rows.trained_tokens);
  estimate.set_total_steps(resolved.total_steps);
  v1::MemoryEstimate& memory = *estimate.mutable_memory();
  memory.set_weights_bytes(resolved.memory.weights);
  memory.set_training_state_bytes(resolved.memory.training_state);
  memory.set_activations_bytes(resolved.memory.activations);
  memory.set_head_bytes(resolved.memory.head);
  memory.set_workspace_bytes(resolved.memory.workspace);
  memory.set_total_bytes(resolved.memory.total);
}

// Libraries below a plan throw where nobody thought of an error. That ends the plan: not the server, nor the waiting of
// those who want the same one.
template <typename Make>
absl::StatusOr<Plan> WithoutExceptions(Make make) {
  try {
    return make();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(
        "spec: cannot be planned, by a fault of the server or of its disk: ", error.what(), "; tell who runs it"));
  }
}

}  // namespace

std::string KindOf(const v1::FineTuningSpec& spec) {
  return absl::StrCat(absl::StripPrefix(spec.base_model(), "baseModels/"), " ", spec.has_full() ? "full" : "lora");
}

void SetNeeds(const Plan& plan, Job& job) {
  job.devices = plan.devices;
  job.cpu_memory_bytes = plan.cpu_memory_bytes;
  job.gpu_memory_bytes = plan.gpu_memory_bytes;
  job.node_selector = plan.node_selector;
}

Planner::Planner(Store& store, ArtifactStore& artifacts, std::string data_dir)
    : store_(store),
      artifacts_(artifacts),
      data_dir_(std::move(data_dir)),
      plans_(kPlans),
      rows_(kRows),
      models_(kModels) {}
Planner::~Planner() = default;

std::string Planner::KeyOf(const v1::FineTuningSpec& spec, const Limits& limits, const std::string& today) const {
  return absl::StrCat(today, ":", static_cast<int>(limits.device.kind), ":", limits.device.memory_bytes, ":",
                      limits.devices, ":", DeterministicBytes(spec));
}

std::shared_ptr<const Plan> Planner::KnownPlanOf(const v1::FineTuningSpec& spec) {
  const std::string key = KeyOf(spec, LimitsOfNodes(), Today());
  const std::lock_guard lock(mutex_);
  return plans_.Find(key).value_or(nullptr);
}

absl::StatusOr<std::shared_ptr<const Plan>> Planner::PlanOf(const v1::FineTuningSpec& spec) {
  const Limits limits = LimitsOfNodes();
  const std::string today = Today();
  const std::string key = KeyOf(spec, limits, today);
  int64_t forgotten;
  {
    std::unique_lock lock(mutex_);
    // Whoever asks for what is being planned waits for it instead of doing the same work beside it.
    planned_.wait(lock, [&] { return planning_.count(key) == 0; });
    if (auto known = plans_.Find(key)) return *known;
    planning_.insert(key);
    forgotten = forgotten_;
  }
  absl::StatusOr<Plan> made = WithoutExceptions([&] { return MakePlan(spec, limits, today); });
  const std::lock_guard lock(mutex_);
  planning_.erase(key);
  planned_.notify_all();
  if (!made.ok()) return made.status();
  auto plan = std::make_shared<const Plan>(*std::move(made));
  if (forgotten == forgotten_) plans_.Put(key, plan);
  return plan;
}

absl::StatusOr<Plan> Planner::MakePlan(const v1::FineTuningSpec& message, const Limits& limits,
                                       const std::string& today) {
  const DeviceFacts& device = limits.device;
  v1::FineTuningJob request;
  *request.mutable_spec() = message;
  LUTHIER_ASSIGN_OR_RETURN(JobSpec spec, JobFromProto(request));
  Plan plan;
  plan.base_model = std::string(absl::StripPrefix(spec.base_model, "baseModels/"));
  LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedModel> model, LoadModel(plan.base_model));
  if (!spec.recipe.lora.start_from.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(*plan.start.add_inputs(), StartAdapter(plan.base_model, spec.recipe.lora));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Part> parts, FindParts(spec.dataset));
  LUTHIER_ASSIGN_OR_RETURN(const bool date_chosen, ChooseTemplateDate(model->folder, today, spec.recipe));
  LUTHIER_ASSIGN_OR_RETURN(const DatasetFacts rows, CheckRows(*model, spec.recipe, parts));
  LUTHIER_ASSIGN_OR_RETURN(ResolvedSpec resolved, Resolve(spec.recipe, model->facts, rows, device));
  LeaveDeviceValuesOpen(spec.recipe, resolved);
  for (ResolvedValue& value : resolved.values) {
    if (date_chosen && value.field == "template_date") value.reason = "the day of submission, as the template asks";
  }

  *plan.job.mutable_spec() = message;
  for (const ResolvedValue& value : resolved.values) {
    v1::ResolvedValue& settled = *plan.job.add_resolved();
    settled.set_field(value.field);
    settled.set_value(value.value);
    settled.set_reason(value.reason);
  }
  for (const std::string& warning : resolved.warnings) plan.job.add_warnings(warning);
  plan.devices = static_cast<int>(resolved.recipe.resources.devices.value_or(1));
  WarnAboutDevices(plan.devices, limits, plan.job);
  WarnAboutSharedRows(parts, plan.job);
  plan.start.set_trainer_spec_json(TrainerSpecJson(plan.base_model, resolved.recipe));
  v1::AttemptInput& base = *plan.start.add_inputs();
  base.set_role("base_model");
  *base.mutable_files() = model->message.files();
  std::set<std::string> datasets;
  for (const Part& part : parts) {
    datasets.insert(part.dataset);
    v1::AttemptInput& input = *plan.start.add_inputs();
    input.set_role(part.role);
    input.set_name(part.name());
    if (part.role == "train") input.set_weight(part.weight);
    v1::ModelFile& file = *input.add_files();
    file.set_path(part.file.part() + ".jsonl");
    file.set_size_bytes(part.file.size_bytes());
    file.set_sha256(part.file.sha256());
  }
  plan.kind = KindOf(message);
  plan.work_tokens = resolved.total_steps * resolved.recipe.training.batch_tokens.value_or(0);
  FillEstimate(resolved, rows, plan.estimate);
  if (!resolved.recipe.lora.start_from.empty()) datasets.insert(resolved.recipe.lora.start_from);
  plan.datasets = absl::StrJoin(datasets, ",");
  plan.model = spec.output_model;
  plan.job_bytes = plan.job.SerializeAsString();
  plan.record = std::make_shared<const std::string>(JoinStoredSpec(plan.job_bytes, plan.start.SerializeAsString()));
  plan.cpu_memory_bytes = LeastMemory(DeviceFacts::Kind::kCpu, device, spec.recipe, model->facts, rows);
  plan.gpu_memory_bytes = LeastMemory(DeviceFacts::Kind::kCuda, device, spec.recipe, model->facts, rows);
  plan.node_selector = LabelText(spec.recipe.resources.node_selector);
  return plan;
}

absl::StatusOr<std::shared_ptr<const Planner::LoadedModel>> Planner::LoadModel(const std::string& id) {
  LUTHIER_ASSIGN_OR_RETURN(const Resource resource, store_.GetResource(ResourceKind::kBaseModel, id));
  {
    const std::lock_guard lock(mutex_);
    if (auto known = models_.Find(resource.payload)) return *known;
  }
  auto model = std::make_shared<LoadedModel>();
  model->message.ParseFromString(resource.payload);
  for (const v1::ModelFile& file : model->message.files()) absl::StrAppend(&model->fingerprint, file.sha256(), ":");
  // Named by its content: a restored record may have another model of this id.
  model->folder = absl::StrCat(BaseModelsFolder(data_dir_), "/", id, "-", Sha256Hex(model->fingerprint).substr(0, 16));
  {
    const std::lock_guard lock(making_folder_);
    LUTHIER_RETURN_IF_ERROR(MakeModelFolder(artifacts_, model->message, model->folder));
  }
  LUTHIER_ASSIGN_OR_RETURN(model->facts, ReadModelFacts(model->folder));
  LUTHIER_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(model->folder));
  const std::lock_guard lock(mutex_);
  models_.Put(resource.payload, model);
  return std::shared_ptr<const LoadedModel>(model);
}

// The adapter that a job goes on from, as an input; the block gets its shape.
absl::StatusOr<v1::AttemptInput> Planner::StartAdapter(const std::string& base_model, LoraSpec& lora) {
  const auto refuse = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat("lora.start_from: ", lora.start_from, " ", why));
  };
  LUTHIER_ASSIGN_OR_RETURN(const VersionName name, ParseVersionName(lora.start_from));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store_.Versions(name.model));
  const auto version = std::find_if(versions.begin(), versions.end(),
                                    [&](const ModelVersion& one) { return one.version == name.number; });
  if (version == versions.end()) return refuse("does not exist");
  v1::ArtifactStored stored;
  stored.ParseFromString(version->payload);
  if (stored.kind() != v1::ModelVersion::ADAPTER) return refuse("is no adapter; give the version of a LoRA job");
  if (version->base_model != base_model) {
    return refuse(absl::StrCat("is an adapter of baseModels/", version->base_model, ", and the job tunes baseModels/",
                               base_model, "; give a version that was trained on that"));
  }
  v1::AttemptInput input;
  input.set_role("start_adapter");
  for (const v1::ModelFile& file : stored.files()) {
    if (file.path() != kAdapterConfigFile && file.path() != kAdapterWeightsFile) continue;
    *input.add_files() = file;
    if (file.path() != kAdapterConfigFile) continue;
    LUTHIER_ASSIGN_OR_RETURN(const LocalBlob config, artifacts_.MakeLocal(file.sha256()));
    LUTHIER_ASSIGN_OR_RETURN(const AdapterConfig adapter, ReadAdapterConfigFile(config.path));
    TakeShapeOf(adapter, lora);
  }
  if (input.files_size() != 2) return refuse("lacks its configuration or its weights");
  return input;
}

// `reference`: `dataset` or `dataset/part`. Appends nothing if an optional part does not exist.
absl::Status Planner::AddPart(const std::string& role, absl::string_view reference, bool required,
                              std::vector<Part>& parts) {
  absl::ConsumePrefix(&reference, "datasets/");
  const size_t slash = reference.find('/');
  const std::string id(reference.substr(0, slash));
  const std::string part(slash == absl::string_view::npos ? absl::string_view(role) : reference.substr(slash + 1));
  LUTHIER_ASSIGN_OR_RETURN(const Resource resource, store_.GetResource(ResourceKind::kDataset, id));
  v1::Dataset dataset;
  dataset.ParseFromString(resource.payload);
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

absl::StatusOr<std::vector<Planner::Part>> Planner::FindParts(const DatasetSelection& selection) {
  std::vector<Part> parts;
  if (!selection.name.empty()) {
    for (const char* role : {"train", "validation", "test"}) {
      LUTHIER_RETURN_IF_ERROR(AddPart(role, selection.name, role == std::string("train"), parts));
    }
    return parts;
  }
  if (!selection.train.empty()) LUTHIER_RETURN_IF_ERROR(AddPart("train", selection.train, true, parts));
  for (const WeightedDataset& weighted : selection.mixture) {
    LUTHIER_RETURN_IF_ERROR(AddPart("train", weighted.dataset, true, parts));
    parts.back().weight = weighted.weight;
  }
  if (!selection.validation.empty()) LUTHIER_RETURN_IF_ERROR(AddPart("validation", selection.validation, true, parts));
  if (!selection.test.empty()) LUTHIER_RETURN_IF_ERROR(AddPart("test", selection.test, true, parts));
  return parts;
}

// No reason to refuse: a node with more may come.
void Planner::WarnAboutDevices(int wanted, const Limits& limits, v1::FineTuningJob& job) {
  if (limits.devices == 0 || wanted <= limits.devices) return;
  job.add_warnings(absl::StrCat("resources.devices: ", wanted, " is more than any node has, of which the largest has ",
                                limits.devices, "; the job waits until one with so many is connected"));
}

void Planner::WarnAboutSharedRows(const std::vector<Part>& parts, v1::FineTuningJob& job) {
  for (const Part& held_out : parts) {
    for (const Part& train : parts) {
      if (held_out.role == "train" || train.role != "train" || held_out.file.sha256() != train.file.sha256()) continue;
      job.add_warnings(
          absl::StrCat("dataset.", held_out.role, ": ", held_out.name(), " has the rows of ", train.name(),
                       ", so its figures say nothing about other rows; give rows that are not trained on"));
    }
  }
}

// Encodes every part as training will; what is wrong with any of them is refused now.
absl::StatusOr<DatasetFacts> Planner::CheckRows(const LoadedModel& model, const Recipe& recipe,
                                                const std::vector<Part>& parts) {
  const EncodeOptions encoding = EncodingOf(recipe, model.facts.config.max_position_embeddings);
  std::string key = absl::StrCat(model.fingerprint, static_cast<int>(encoding.loss_on), ":",
                                 static_cast<int>(encoding.too_long), ":", encoding.max_length);
  absl::StrAppend(&key, ":", recipe.template_date, ":", recipe.chat_template);
  for (const Part& part : parts) absl::StrAppend(&key, ":", part.role, ":", part.file.sha256(), ":", part.weight);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = rows_.Find(key)) return *known;
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat_template,
                           ChatTemplate::OfJob(model.folder, recipe.chat_template, recipe.template_date));
  const RowEncoder encoder(*model.tokenizer, chat_template ? &*chat_template : nullptr, encoding);
  std::vector<ReportedFile> files;
  ValidationReport all;
  for (const Part& part : parts) {
    LUTHIER_ASSIGN_OR_RETURN(const LocalBlob rows, artifacts_.MakeLocal(part.file.sha256()));
    ReportedFile& file =
        files.emplace_back(ReportedFile{.part = part.role, .name = part.name(), .weight = part.weight});
    LUTHIER_ASSIGN_OR_RETURN(file.report, Validate(rows.path, encoder, file.name));
    all.Merge(file.report);
  }
  LUTHIER_RETURN_IF_ERROR(all.ToStatus());
  const DatasetFacts facts = FactsOf(files);
  const std::lock_guard lock(mutex_);
  rows_.Put(key, facts);
  return facts;
}

void Planner::SetNode(const std::string& node, const v1::Inventory& inventory) {
  Limits limits;
  DeviceFacts& largest = limits.device;
  const int shares = std::max(1, inventory.shares());
  limits.devices = std::max(1, inventory.gpus_size()) * shares;
  if (inventory.gpus().empty()) largest.memory_bytes = inventory.memory_bytes() / shares;
  for (const v1::Gpu& gpu : inventory.gpus()) {
    largest.kind = DeviceFacts::Kind::kCuda;
    largest.bf16 = true;
    largest.memory_bytes = std::max<int64_t>(largest.memory_bytes, gpu.memory_bytes() / shares);
  }
  const std::lock_guard lock(mutex_);
  nodes_[node] = limits;
}

Planner::Limits Planner::LimitsOfNodes() {
  const std::lock_guard lock(mutex_);
  Limits most;
  for (const auto& [id, node] : nodes_) {
    // A GPU before any CPU, however much memory that has.
    if (std::pair(node.device.kind, node.device.memory_bytes) > std::pair(most.device.kind, most.device.memory_bytes))
      most.device = node.device;
    most.devices = std::max(most.devices, node.devices);
  }
  return most;
}

std::optional<absl::Duration> Planner::DurationOf(const Plan& plan) {
  const std::lock_guard lock(mutex_);
  const auto speed = speeds_.find(plan.kind);
  if (speed == speeds_.end()) return std::nullopt;
  return std::min(absl::Seconds(static_cast<double>(plan.work_tokens) / speed->second), kLongestJob);
}

void Planner::ObserveSpeed(const std::string& kind, double tokens_per_second) {
  if (!(tokens_per_second > 0)) return;
  const std::lock_guard lock(mutex_);
  const auto [speed, first] = speeds_.try_emplace(kind, tokens_per_second);
  // A report is the mean of some steps already; the newest of several machines must not decide alone.
  if (!first) speed->second = 0.9 * speed->second + 0.1 * tokens_per_second;
}

void Planner::Forget() {
  const std::lock_guard lock(mutex_);
  plans_.Clear();  // rows and models are known by their content, and stay true
  ++forgotten_;
}

}  // namespace luthier
