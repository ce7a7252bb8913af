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
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/text/template_source.h"
#include "lib/wire/job_spec_wire.h"
#include "luthier/v1/models.pb.h"
#include "server/core/reason.h"
#include "server/rows/row_check.h"
#include "server/rpc/adapter_inputs.h"
#include "server/rpc/convert.h"
#include "server/rpc/export_plan.h"
#include "server/rpc/model_versions.h"
#include "server/rpc/stored_files.h"

namespace luthier {

namespace {

// Models are some KB, row facts some bytes, and plans as large as what was asked for: one of a long template is made
// anew. Whatever decides what they are may be long, too, so they are found by its hash.
constexpr size_t kMostPlanBytes = size_t{256} << 10;
constexpr size_t kPlans = 256;
constexpr size_t kRows = 4096;
constexpr size_t kModels = 64;

// Of a job that trains. Errors: INVALID_ARGUMENT with every violation.
absl::StatusOr<JobSpec> ReadSpec(const v1::FineTuningSpec& spec) {
  v1::FineTuningJob job;
  *job.mutable_spec() = spec;
  return JobFromProto(job);
}

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
// after a night are the same. Returns whether it was chosen here. Nothing is parsed here: see server/rows/row_check.h.
absl::StatusOr<bool> ChooseTemplateDate(const std::string& base_folder, const std::string& today, Recipe& recipe) {
  if (!recipe.chat_template.empty() && recipe.chat_template.find('{') == std::string::npos) {
    return absl::InvalidArgumentError("chat_template: is no template; give its text");  // never a path of this machine
  }
  TemplateSources sources = recipe.chat_template;
  if (sources.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(sources, ReadTemplateSources(base_folder));
  }
  if (!recipe.template_date.empty() || !AsksForDate(sources)) return false;
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

// Libraries below a plan throw where nobody thought of an error. That ends the plan: not the server, nor the waiting of
// those who want the same rows.
template <typename Make>
auto WithoutExceptions(Make make) -> decltype(make()) {
  try {
    return make();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(
        "spec: cannot be planned, by a fault of the server or of its disk: ", error.what(), "; tell who runs it"));
  }
}

absl::Status ShuttingDown() {
  return WithReason(absl::UnavailableError("the server is shutting down; try again"), "SHUTTING_DOWN");
}

void FillEstimate(const ResolvedSpec& resolved, const DatasetFacts& rows, v1::EstimateFineTuningJobResponse& estimate) {
  estimate.set_train_rows(rows.rows);
  estimate.set_train_tokens(rows.tokens);
  estimate.set_trained_tokens(rows.trained_tokens);
  estimate.set_total_steps(resolved.total_steps);
  *estimate.mutable_memory() = ToProto(resolved.memory);
}

}  // namespace

absl::Status CheckSpec(const v1::FineTuningSpec& spec) {
  return spec.has_model_export() ? RecipeOfExport(spec).status() : ReadSpec(spec).status();
}

absl::Status TooManyPlansOf(const std::string& tenant) {
  return TenantMayNotHaveMore(tenant,
                              absl::StrCat("tenants/", tenant,
                                           " has as many jobs waiting to be planned as a tenant may; try again when "
                                           "some of their datasets are read"),
                              "TOO_MANY_PLANS");
}

Planner::Planner(Store& store, ArtifactStore& artifacts, TaskPool& threads, std::string data_dir, std::string luthierd)
    : store_(store),
      artifacts_(artifacts),
      threads_(threads),
      data_dir_(std::move(data_dir)),
      luthierd_(std::move(luthierd)),
      plans_(kPlans),
      rows_(kRows),
      models_(kModels) {}
Planner::~Planner() = default;

// Of the nodes only whether they are enough: plans must not be made anew whenever a node comes.
std::string Planner::KeyOf(const v1::FineTuningSpec& spec, const Limits& limits, const std::string& today) const {
  return Sha256Hex(absl::StrCat(today, ":", static_cast<int>(limits.device.kind), ":", limits.device.memory_bytes, ":",
                                limits.devices, ":", std::min(limits.nodes, spec.resources().nodes()), ":",
                                DeterministicBytes(spec)));
}

std::shared_ptr<const Plan> Planner::KnownPlanOf(const v1::FineTuningSpec& spec) {
  const std::string key = KeyOf(spec, LimitsOfNodes(), Today());
  const std::lock_guard lock(mutex_);
  return plans_.Find(key).value_or(nullptr);
}

absl::StatusOr<std::shared_ptr<const Plan>> Planner::PlanOf(const v1::FineTuningSpec& spec, const Asker& asker) {
  const Limits limits = LimitsOfNodes();
  const std::string today = Today();
  const std::string key = KeyOf(spec, limits, today);
  int64_t forgotten;
  {
    const std::lock_guard lock(mutex_);
    if (auto known = plans_.Find(key)) return *known;
    forgotten = forgotten_;
  }
  LUTHIER_ASSIGN_OR_RETURN(Plan made, WithoutExceptions([&] { return MakePlan(spec, asker, limits, today); }));
  auto plan = std::make_shared<const Plan>(std::move(made));
  const std::lock_guard lock(mutex_);
  if (forgotten == forgotten_ && plan->record->size() <= kMostPlanBytes) plans_.Put(key, plan);
  return plan;
}

absl::StatusOr<Plan> Planner::MakePlan(const v1::FineTuningSpec& message, const Asker& asker, const Limits& limits,
                                       const std::string& today) {
  const DeviceFacts& device = limits.device;
  if (message.has_model_export()) return MakeExport(message, device);
  LUTHIER_ASSIGN_OR_RETURN(JobSpec spec, ReadSpec(message));
  Plan plan;
  plan.base_model = std::string(absl::StripPrefix(spec.base_model, "baseModels/"));
  LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedModel> model, LoadModel(plan.base_model));
  if (!spec.recipe.lora.start_from.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(*plan.start.add_inputs(),
                             StartAdapter(store_, artifacts_, plan.base_model, spec.recipe.lora));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<DatasetUse> parts,
                           FindParts(store_, message.dataset(), [](const v1::Dataset&) { return true; }));
  LUTHIER_ASSIGN_OR_RETURN(const bool date_chosen, ChooseTemplateDate(model->folder, today, spec.recipe));
  LUTHIER_ASSIGN_OR_RETURN(const DatasetFacts rows, FactsOfRows(*model, spec.recipe, parts, asker));
  absl::StatusOr<ResolvedSpec> settled = Resolve(spec.recipe, model->facts, rows, device);
  if (absl::IsResourceExhausted(settled.status())) return WithReason(settled.status(), kTooLarge);
  LUTHIER_ASSIGN_OR_RETURN(ResolvedSpec resolved, std::move(settled));
  LeaveDeviceValuesOpen(spec.recipe, resolved);
  for (ResolvedValue& value : resolved.values) {
    if (date_chosen && value.field == "template_date") value.reason = "the day of submission, as the template asks";
  }

  *plan.job.mutable_spec() = message;
  for (const ResolvedValue& value : resolved.values) AddResolved(value.field, value.value, value.reason, plan.job);
  for (const std::string& warning : resolved.warnings) plan.job.add_warnings(warning);
  plan.nodes = static_cast<int>(resolved.recipe.resources.nodes.value_or(1));
  plan.devices = static_cast<int>(resolved.recipe.resources.devices.value_or(1));
  WarnAboutNodes(plan, limits);
  WarnAboutSharedRows(parts, plan.job);
  plan.start.set_trainer_spec_json(TrainerSpecJson(plan.base_model, resolved.recipe));
  AddBaseModel(model->message, plan.start);
  AddInputs(parts, plan.start);
  plan.tuning = message.has_full() ? Tuning::kFull : Tuning::kLora;
  plan.work_tokens = resolved.total_steps * resolved.recipe.training.batch_tokens.value_or(0);
  FillEstimate(resolved, rows, plan.estimate);
  std::set<std::string> datasets;
  for (const DatasetUse& part : parts) datasets.insert(part.dataset);
  if (!resolved.recipe.lora.start_from.empty()) datasets.insert(resolved.recipe.lora.start_from);
  plan.datasets = absl::StrJoin(datasets, ",");
  plan.model = spec.output_model;
  Serialize(plan);
  plan.cpu_memory_bytes = LeastMemory(DeviceFacts::Kind::kCpu, device, spec.recipe, model->facts, rows);
  plan.gpu_memory_bytes = LeastMemory(DeviceFacts::Kind::kCuda, device, spec.recipe, model->facts, rows);
  plan.node_selector = LabelText(spec.recipe.resources.node_selector);
  return plan;
}

absl::StatusOr<Plan> Planner::MakeExport(const v1::FineTuningSpec& spec, const DeviceFacts& device) {
  LUTHIER_ASSIGN_OR_RETURN(const Recipe recipe, RecipeOfExport(spec));
  LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version,
                           FindVersion(store_, Call(), spec.model_export().model_version()));
  LUTHIER_RETURN_IF_ERROR(CheckExportable(version, spec));
  LUTHIER_ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedModel> base,
                           LoadModel(std::string(absl::StripPrefix(version.base_model(), "baseModels/"))));
  return MakeExportPlan(spec, recipe, version, *base, device, artifacts_);
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> Planner::LoadModel(const std::string& id) {
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
  const std::lock_guard lock(mutex_);
  models_.Put(resource.payload, model);
  return std::shared_ptr<const LoadedModel>(model);
}

// No reason to refuse: nodes with more, and more of them, may come.
void Planner::WarnAboutNodes(Plan& plan, const Limits& limits) {
  if (limits.nodes == 0) return;
  if (plan.devices > limits.devices) {
    plan.job.add_warnings(absl::StrCat("resources.devices: ", plan.devices,
                                       " is more than any node has, of which the largest has ", limits.devices,
                                       "; the job waits until one with so many is connected"));
  }
  if (plan.nodes > limits.nodes) {
    plan.job.add_warnings(absl::StrCat("resources.nodes: ", plan.nodes, " are more than the ", limits.nodes,
                                       " that the server has seen; the job waits until so many are connected that "
                                       "others reach (`luthier-worker --gang-address`)"));
  }
}

// Encodes every part as training will; what is wrong with any of them is refused now.
absl::StatusOr<DatasetFacts> Planner::FactsOfRows(const LoadedModel& model, const Recipe& recipe,
                                                  const std::vector<DatasetUse>& parts, const Asker& asker) {
  RowCheck check{.base_model = model.folder,
                 .chat_template = recipe.chat_template,
                 .template_date = recipe.template_date,
                 .encoding = EncodingOf(recipe, model.facts.config.max_position_embeddings),
                 .scored_rows = recipe.evaluation.max_rows.value_or(kScoredRows)};
  std::string key =
      absl::StrCat(model.fingerprint, static_cast<int>(check.encoding.loss_on), ":",
                   static_cast<int>(check.encoding.too_long), ":", check.encoding.max_length, ":", check.scored_rows);
  absl::StrAppend(&key, ":", recipe.template_date, ":", recipe.chat_template);
  for (const DatasetUse& part : parts) absl::StrAppend(&key, ":", part.role, ":", part.file.sha256(), ":", part.weight);
  key = Sha256Hex(key);
  {
    std::unique_lock lock(mutex_);
    // Here, so that whoever wants what is being read takes no turn.
    if (const auto known = KnownRows(key, lock)) return *known;
  }
  absl::StatusOr<DatasetFacts> facts = absl::UnknownError("");
  const auto read = [&] { facts = ReadRows(key, std::move(check), parts, asker); };
  if (!threads_.Run(asker.tenant, read)) return TooManyPlansOf(asker.tenant);
  return facts;
}

std::optional<DatasetFacts> Planner::KnownRows(const std::string& key, std::unique_lock<std::mutex>& lock) {
  read_.wait(lock, [&] { return reading_.count(key) == 0; });
  return rows_.Find(key);
}

absl::StatusOr<DatasetFacts> Planner::ReadRows(const std::string& key, RowCheck check,
                                               const std::vector<DatasetUse>& parts, const Asker& asker) {
  if (asker.is_gone && asker.is_gone()) return absl::CancelledError("the caller is gone, and its rows were not read");
  {
    std::unique_lock lock(mutex_);
    if (const auto known = KnownRows(key, lock)) return *known;
    reading_.insert(key);
  }
  absl::StatusOr<DatasetFacts> facts = WithoutExceptions([&] { return CheckParts(std::move(check), parts); });
  const std::lock_guard lock(mutex_);
  reading_.erase(key);
  read_.notify_all();
  if (facts.ok()) rows_.Put(key, *facts);
  return facts;
}

absl::StatusOr<DatasetFacts> Planner::CheckParts(RowCheck check, const std::vector<DatasetUse>& parts) {
  const std::stop_token stop = stopping_.get_token();
  std::vector<LocalBlob> blobs;  // stay where they are until the rows are checked
  int64_t bytes = 0;
  for (const DatasetUse& part : parts) {
    if (stop.stop_requested()) return ShuttingDown();  // each may be far away
    LUTHIER_ASSIGN_OR_RETURN(LocalBlob rows, artifacts_.MakeLocal(part.file.sha256()));
    check.files.push_back({.part = part.role, .name = part.name(), .path = rows.path, .weight = part.weight});
    blobs.push_back(std::move(rows));
    bytes += part.file.size_bytes();
  }
  const absl::StatusOr<DatasetFacts> facts = CheckRowsInChild(luthierd_, check, LimitsOf(bytes), stop);
  if (stop.stop_requested()) return ShuttingDown();
  if (absl::IsInvalidArgument(facts.status())) return WithReason(facts.status(), kRowsRefused);
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
  most.nodes = static_cast<int>(nodes_.size());
  return most;
}

void Planner::Forget() {
  const std::lock_guard lock(mutex_);
  plans_.Clear();  // rows and models are known by their content, and stay true
  ++forgotten_;
}

}  // namespace luthier
