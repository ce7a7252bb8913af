#include "worker/trainer/train/preparation.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/dataset/validate.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/device.h"
#include "worker/trainer/train/token_checks.h"
#include "worker/trainer/train/tuning.h"

namespace luthier {
namespace {

using nlohmann::json;

constexpr char kUserDataPayload[] = "luthier/user-data";

// Marks an error as the fault of the rows.
absl::Status UserData(absl::Status status) {
  status.SetPayload(kUserDataPayload, absl::Cord("1"));
  return status;
}

EncodeOptions EncodingOf(const TrainingSpec& training) {
  return EncodeOptionsOf(*training.loss_on, *training.too_long, *training.max_length);
}

absl::StatusOr<Base> OpenBase(const TrainerSpec& spec) {
  LUTHIER_ASSIGN_OR_RETURN(ModelFacts facts, spec.init == "random" ? ReadModelFactsWithoutWeights(spec.base_model)
                                                                   : ReadModelFacts(spec.base_model));
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(spec.base_model));
  Base base{std::move(facts), std::move(tokenizer), std::nullopt, ""};
  LUTHIER_ASSIGN_OR_RETURN(base.own_template, TemplateSource(spec.recipe.chat_template));
  LUTHIER_ASSIGN_OR_RETURN(base.chat_template,
                           ChatTemplate::OfJob(spec.base_model, base.own_template, spec.recipe.template_date));
  return base;
}

// The parts of the dataset before the plan is settled: encoded without a limit, which may have to be chosen from what
// is found.
struct UnlimitedRows {
  EncodeOptions options;
  LoadedExamples train;
  std::optional<LoadedExamples> validation, test;
};

// A part that is one file.
std::vector<TrainFile> FilesOf(const std::string& path) {
  return {{.path = path, .name = std::filesystem::path(path).filename().string()}};
}

std::vector<std::string> NamesOf(const std::vector<TrainFile>& files) {
  std::vector<std::string> names;
  for (const TrainFile& file : files) names.push_back(file.name);
  return names;
}

// `part`: train, validation or test. A file that cannot be opened has no line to name, but a field.
absl::StatusOr<LoadedExamples> EncodePart(const std::string& part, const std::vector<TrainFile>& files,
                                          const RowEncoder& encoder) {
  std::vector<std::string> paths;
  for (const TrainFile& file : files) paths.push_back(file.path);
  absl::StatusOr<LoadedExamples> loaded = LoadExamples(paths, encoder, NamesOf(files), at::get_num_threads());
  if (absl::IsNotFound(loaded.status())) {
    return UserData(absl::NotFoundError(absl::StrCat("dataset.", part, ": ", loaded.status().message())));
  }
  if (!loaded.ok()) return UserData(loaded.status());
  return loaded;
}

absl::StatusOr<UnlimitedRows> EncodeRows(const TrainerSpec& spec, const Base& base) {
  UnlimitedRows rows;
  rows.options = EncodeOptionsOf(LossOnBeforeRowsAreKnown(spec.recipe), "refuse", 0);
  const RowEncoder encoder(base.tokenizer, base.template_or_null(), rows.options);
  LUTHIER_ASSIGN_OR_RETURN(rows.train, EncodePart("train", spec.train, encoder));
  if (!spec.validation.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(rows.validation, EncodePart("validation", FilesOf(spec.validation), encoder));
  }
  if (!spec.test.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(rows.test, EncodePart("test", FilesOf(spec.test), encoder));
  }
  return rows;
}

void AddReports(const std::string& part, const std::vector<TrainFile>& files, const LoadedExamples& loaded,
                std::vector<ReportedFile>& out) {
  for (size_t i = 0; i < files.size(); ++i)
    out.push_back({part, files[i].name, files[i].weight, loaded.file_reports[i]});
}

DatasetFacts FactsOf(const TrainerSpec& spec, const UnlimitedRows& rows) {
  std::vector<ReportedFile> files;
  AddReports("train", spec.train, rows.train, files);
  if (rows.validation) AddReports("validation", FilesOf(spec.validation), *rows.validation, files);
  if (rows.test) AddReports("test", FilesOf(spec.test), *rows.test, files);
  return FactsOf(files);
}

// Whether the settled options mark the same tokens.
bool IsMarkedAs(const ValidationReport& report, const EncodeOptions& encoded, const EncodeOptions& settled) {
  if (settled.loss_on == encoded.loss_on || report.text_rows + report.token_rows == report.rows) return true;
  // `completion` and `assistant` differ in conversations only.
  using LossOn = EncodeOptions::LossOn;
  return report.chat_rows == 0 && settled.loss_on != LossOn::kAll && encoded.loss_on != LossOn::kAll;
}

// The metric by which the best weights are chosen has to be one that the validation rows have.
void SettleMetric(const EvaluationSplit& validation, ResolvedSpec& plan) {
  std::string& metric = *plan.recipe.evaluation.metric;
  const std::string usable =
      UsableMetric(metric, ParseTaskType(plan.recipe.task).value_or(TaskType::kChat), validation);
  if (usable == metric) return;
  plan.warnings.push_back(absl::StrCat("evaluation.metric: ", metric, " needs ",
                                       usable == "loss" ? "rows with answers" : "answers in JSON",
                                       ", which the validation part lacks; ", usable, " chooses the best weights"));
  metric = usable;
}

// What is measured on rows that are trained on says nothing about others.
absl::Status WarnAboutSharedRows(const TrainerSpec& spec, std::vector<std::string>& warnings) {
  for (const auto& [field, path] : {std::pair("validation", spec.validation), std::pair("test", spec.test)}) {
    for (const TrainFile& train : spec.train) {
      if (path.empty() || std::filesystem::file_size(path) != std::filesystem::file_size(train.path)) continue;
      LUTHIER_ASSIGN_OR_RETURN(const std::string hash, Sha256OfFile(path));
      LUTHIER_ASSIGN_OR_RETURN(const std::string train_hash, Sha256OfFile(train.path));
      if (hash != train_hash) continue;
      warnings.push_back(
          absl::StrCat("dataset.", field, ": ", path, " has the rows of the training file ", train.path,
                       ", so its figures say nothing about other rows; give rows that are not trained on"));
    }
  }
  return absl::OkStatus();
}

// `part`, which was encoded as `encoded` says, as `encoder` gives it. Mostly it is right as it is or has to be cut
// only, and encoding twice would be half of a short start. What is refused is encoded again to be named by its line.
absl::StatusOr<LoadedExamples> Settled(const std::string& name, const std::vector<TrainFile>& files,
                                       LoadedExamples part, const EncodeOptions& encoded, const RowEncoder& encoder) {
  const EncodeOptions& options = encoder.options();
  const bool too_long = part.report.longest_row_tokens > options.max_length;
  const bool refused = too_long && options.too_long == EncodeOptions::TooLong::kRefuse;
  if (refused || !IsMarkedAs(part.report, encoded, options)) return EncodePart(name, files, encoder);
  if (!too_long) return part;
  absl::StatusOr<LoadedExamples> shortened = ShortenExamples(std::move(part), encoder, NamesOf(files));
  if (!shortened.ok()) return UserData(shortened.status());
  return shortened;
}

absl::Status TakeRows(UnlimitedRows rows, Run& run) {
  const RowEncoder encoder(run.base.tokenizer, run.base.template_or_null(), EncodingOf(run.training()));
  const auto settle = [&](const std::string& name, const std::vector<TrainFile>& files,
                          LoadedExamples part) -> absl::StatusOr<std::vector<Example>> {
    LUTHIER_ASSIGN_OR_RETURN(part, Settled(name, files, std::move(part), rows.options, encoder));
    AddReports(name, files, part, run.files);
    return std::move(part.examples);
  };
  LUTHIER_ASSIGN_OR_RETURN(run.examples, settle("train", run.spec.train, std::move(rows.train)));
  for (const Example& example : run.examples) run.lengths.push_back(static_cast<int32_t>(example.ids.size()));
  run.stop_ids = encoder.stop_ids();
  const auto add_split = [&](const std::string& name, const std::string& path,
                             std::optional<LoadedExamples> part) -> absl::Status {
    if (!part) return absl::OkStatus();
    LUTHIER_ASSIGN_OR_RETURN(std::vector<Example> examples, settle(name, FilesOf(path), *std::move(part)));
    absl::StatusOr<EvaluationSplit> split =
        MakeSplit(name, path, std::move(examples), encoder, *run.plan.recipe.evaluation.max_rows);
    if (!split.ok()) return UserData(split.status());
    if (split->unscored > 0) {
      run.plan.warnings.push_back(absl::StrCat(name, ": ", split->unscored, " rows of ",
                                               split->unscored + static_cast<int64_t>(split->prompts.size()),
                                               " are not scored by their answers; the first: ", split->why_unscored));
    }
    run.splits.push_back(*std::move(split));
    return absl::OkStatus();
  };
  LUTHIER_RETURN_IF_ERROR(add_split("validation", run.spec.validation, std::move(rows.validation)));
  if (!run.splits.empty()) SettleMetric(run.splits.front(), run.plan);
  return add_split("test", run.spec.test, std::move(rows.test));
}

// The plan, with what `before`, of a checkpoint, chose by another machine unless the user gives it. Micro-batches of
// its size may be too large for this one: then smaller ones go on, which give the same up to rounding.
absl::StatusOr<ResolvedSpec> Settle(const Recipe& given, const std::optional<MachineValues>& before,
                                    const ModelFacts& model, const DatasetFacts& rows, const DeviceFacts& device) {
  if (!before) return Resolve(given, model, rows, device);
  Recipe recipe = given;
  TrainingSpec& training = recipe.training;
  if (!training.precision) training.precision = before->precision;
  if (!training.micro_batch_tokens) training.micro_batch_tokens = before->micro_batch_tokens;
  absl::StatusOr<ResolvedSpec> plan = Resolve(recipe, model, rows, device);
  const bool too_large = absl::IsResourceExhausted(plan.status()) && !given.training.micro_batch_tokens;
  if (too_large) {
    training.micro_batch_tokens.reset();
    plan = Resolve(recipe, model, rows, device);
  }
  if (!plan.ok()) return plan;
  if (too_large) {
    plan->warnings.push_back(absl::StrCat("training.micro_batch_tokens: the ", before->micro_batch_tokens,
                                          " of the machine that this run began on do not fit into the memory of this "
                                          "one; it goes on with ",
                                          *plan->recipe.training.micro_batch_tokens,
                                          ", and its result is the same up to rounding"));
  }
  for (ResolvedValue& value : plan->values) {
    const bool kept =
        (value.field == "training.precision" && !given.training.precision) ||
        (value.field == "training.micro_batch_tokens" && !given.training.micro_batch_tokens && !too_large);
    if (kept) value.reason = "as the run began, on this machine or another";
  }
  return plan;
}

// A plan is one for all ranks, so it has room on the smallest device.
DeviceFacts AgreeOnFacts(DeviceFacts facts, const Ranks& ranks) {
  const Tensor all = ranks.Gather(at::tensor(std::vector<int64_t>{facts.memory_bytes, facts.bf16}, at::kLong));
  const Tensor least = all.view({ranks.size(), 2}).amin(0);
  facts.memory_bytes = least[0].item<int64_t>();
  facts.bf16 = least[1].item<int64_t>() != 0;
  return facts;
}

// What the leading rank's newest checkpoint chose; the others may be on nodes that have none of its files.
std::optional<MachineValues> AgreeOnMachineValues(const std::string& out_folder, const Ranks& ranks) {
  const auto found = out_folder.empty() || !ranks.leads() ? std::nullopt : MachineValuesOfNewest(out_folder);
  json values;
  if (found) values = {found->micro_batch_tokens, found->precision};
  values = json::parse(ranks.Share(values.dump()));
  if (values.is_null()) return std::nullopt;
  return MachineValues{values[0].get<int64_t>(), values[1].get<std::string>()};
}

absl::Status BuildModel(Run& run) {
  LUTHIER_ASSIGN_OR_RETURN(run.base_weights,
                           ReadBaseWeights(run, run.lora() ? WeightUse::kFrozen : WeightUse::kTrained));
  LUTHIER_ASSIGN_OR_RETURN(Tuning tuning, MakeTuning(run.plan.recipe, run.base.facts.config, run.base_weights,
                                                     run.spec.base_model_name, run.spec.start_adapter));
  run.adapter = std::move(tuning.adapter);
  run.trained = std::move(tuning.trained);
  run.model = std::move(tuning.model);
  run.model->Configure(run.compute());
  return absl::OkStatus();
}

// Empty if every row comes up once an epoch.
std::vector<MixtureFile> MixtureOf(const Run& run) {
  const std::vector<TrainFile>& files = run.spec.train;
  if (std::all_of(files.begin(), files.end(), [](const TrainFile& file) { return file.weight == 1; })) return {};
  std::vector<MixtureFile> mixture;
  for (const TrainFile& file : files) mixture.push_back({.weight = file.weight});
  for (const Example& example : run.examples) ++mixture[static_cast<size_t>(example.file)].rows;
  return mixture;
}

void PlanSteps(Run& run) {
  const TrainingSpec& training = run.training();
  run.batches.batch_tokens = *training.batch_tokens;
  run.batches.micro_batch_tokens = *training.micro_batch_tokens;
  run.batches.seed = static_cast<uint64_t>(*training.seed);
  run.batches.ranks = *run.plan.recipe.resources.nodes * *run.plan.recipe.resources.devices;
  if (*training.order == "file") run.batches.order = BatchOptions::Order::kFile;
  if (*training.order == "grouped") run.batches.order = BatchOptions::Order::kGrouped;
  run.batches.mixture = MixtureOf(run);
  run.steps_per_epoch = StepsPerEpoch(run.lengths, run.batches);
  run.total_steps = std::max<int64_t>(1, std::llround(*training.epochs * static_cast<double>(run.steps_per_epoch)));
  if (training.max_steps) run.total_steps = std::min(run.total_steps, *training.max_steps);
}

// The content of the files that training starts from, wherever they lie now. Whole, since a resumed run that goes on
// from another base, or from one that a few rows were changed in, would be wrong without a sign; it is read for
// training anyway.
absl::Status AddContent(const Run& run, json& identity) {
  if (run.spec.init != "random") {
    LUTHIER_ASSIGN_OR_RETURN(const WeightFolder base, WeightFolder::Open(run.spec.base_model));
    identity["base"] = ContentHash(base.tensors());
  }
  if (!run.spec.start_adapter.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile start,
                             SafetensorsFile::Open(run.spec.start_adapter + "/" + kAdapterWeightsFile));
    identity["start_adapter"] = ContentHash(start.tensors());
  }
  return absl::OkStatus();
}

void AddRows(const std::vector<Example>& examples, Sha256& hash) {
  for (const Example& example : examples) {
    hash.Update(std::as_bytes(std::span(example.ids)));
    hash.Update(std::as_bytes(std::span(example.trained)));
  }
}

// What a resumed run must share with the one that wrote the checkpoint: all that decides the weights, and which of them
// are the best.
absl::StatusOr<std::string> HashOf(const Run& run) {
  json identity = ToJson(run.plan.recipe);
  for (const char* harmless : {"every", "patience"}) identity["evaluation"].erase(harmless);
  identity.erase("checkpoint");
  identity.erase("resources");
  identity["training"].erase("activation_checkpointing");
  if (!*run.training().optimizer_in_backward) identity["training"].erase("optimizer_in_backward");
  identity["training"]["micro_batch_tokens"] = run.machine.micro_batch_tokens;
  identity["init"] = run.spec.init;
  if (!run.base.own_template.empty()) identity["chat_template"] = run.base.own_template;
  LUTHIER_RETURN_IF_ERROR(AddContent(run, identity));
  identity["config"] = run.base.facts.config_json;
  identity["lengths"] = run.lengths;
  for (const MixtureFile& file : run.batches.mixture) identity["mixture"].push_back({file.rows, file.weight});
  Sha256 hash;
  hash.Update(identity.dump());
  AddRows(run.examples, hash);
  for (const EvaluationSplit& split : run.splits) {
    if (split.name == "validation") AddRows(split.examples, hash);
  }
  return hash.FinishHex();
}

}  // namespace

ComputeOptions Run::compute() const {
  ComputeOptions options;
  if (*training().precision == "bf16") options.type = at::kBFloat16;
  options.recompute_layers = *training().activation_checkpointing;
  return options;
}

absl::StatusOr<std::unique_ptr<Run>> PlanRun(const TrainerSpec& spec, const std::string& out_folder, Ranks ranks) {
  LUTHIER_ASSIGN_OR_RETURN(Base base, OpenBase(spec));
  LUTHIER_ASSIGN_OR_RETURN(UnlimitedRows rows, EncodeRows(spec, base));
  LUTHIER_ASSIGN_OR_RETURN(const at::Device device, DeviceOfRank(ranks.local_rank()));
  DeviceFacts facts = FactsOf(device);
  if (device.is_cpu()) facts.memory_bytes /= spec.recipe.resources.devices.value_or(1);  // ranks share it
  facts = AgreeOnFacts(facts, ranks);
  const auto before = AgreeOnMachineValues(out_folder, ranks);
  absl::StatusOr<ResolvedSpec> settled = Settle(spec.recipe, before, base.facts, FactsOf(spec, rows), facts);
  // Memory, and no disk, which another attempt might find empty.
  if (absl::IsResourceExhausted(settled.status())) return absl::UnavailableError(settled.status().message());
  LUTHIER_ASSIGN_OR_RETURN(ResolvedSpec plan, std::move(settled));
  LUTHIER_RETURN_IF_ERROR(CheckDevices(plan.recipe));
  LUTHIER_RETURN_IF_ERROR(WarnAboutSharedRows(spec, plan.warnings));
  auto run = std::make_unique<Run>(Run{spec, out_folder, std::move(ranks), device, std::move(base), std::move(plan)});
  LUTHIER_RETURN_IF_ERROR(TakeRows(std::move(rows), *run));
  LUTHIER_RETURN_IF_ERROR(CheckTokensHaveEmbeddings(*run));
  if (std::optional<std::string> warning = UntrainedEndWarning(*run)) run->plan.warnings.push_back(*std::move(warning));
  PlanSteps(*run);
  const TrainingSpec& training = run->training();
  const bool keeps = before && !spec.recipe.training.micro_batch_tokens;
  run->machine = {keeps ? before->micro_batch_tokens : *training.micro_batch_tokens, *training.precision};
  return run;
}

absl::StatusOr<std::unique_ptr<Run>> Prepare(const TrainerSpec& spec, const std::string& out_folder, Ranks ranks) {
  LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<Run> run, PlanRun(spec, out_folder, std::move(ranks)));
  LUTHIER_RETURN_IF_ERROR(BuildModel(*run));
  if (std::optional<std::string> warning = UntrainedTokensWarning(*run)) {
    run->plan.warnings.push_back(*std::move(warning));
  }
  LUTHIER_ASSIGN_OR_RETURN(run->spec_hash, HashOf(*run));
  // Steps follow from the plan: ranks that settled different ones would train on rows twice and on others never.
  const int64_t plan = std::stoll(run->spec_hash.substr(0, 15), nullptr, 16);
  if (run->ranks.Agree(plan) != plan)
    return absl::InternalError("the ranks have read different files or settled different plans");
  return run;
}

absl::StatusOr<NamedTensors> ReadBaseWeights(const Run& run, WeightUse use) {
  const ModelConfig& config = run.base.facts.config;
  // What is trained stays fp32 whatever is computed in: bf16 would round small steps away.
  const at::ScalarType type = use == WeightUse::kFrozen ? run.compute().type.value_or(at::kFloat) : at::kFloat;
  NamedTensors weights;
  if (run.spec.init == "random") {
    weights = RandomWeights(config, static_cast<uint64_t>(*run.training().seed));
  } else {
    LUTHIER_ASSIGN_OR_RETURN(weights, LoadWeights(run.spec.base_model, config, type, use));
  }
  for (auto& [name, tensor] : weights) tensor = tensor.to(run.device, type);
  return weights;
}

absl::Status CheckDevices(const Recipe& recipe) {
  const int64_t devices = recipe.resources.devices.value_or(1), nodes = recipe.resources.nodes.value_or(1);
  if (nodes * devices > 1 && recipe.training.optimizer_in_backward.value_or(false)) {
    return absl::InvalidArgumentError(
        absl::StrCat("training.optimizer_in_backward: true does not go with ", nodes * devices,
                     " devices, whose gradients are added up before a weight moves; set it to false, or "
                     "resources.nodes and resources.devices to 1"));
  }
  LUTHIER_ASSIGN_OR_RETURN(const int gpus, CountGpus());
  if (gpus > 0) {
    if (devices <= gpus) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("resources.devices: ", devices, " exceeds the ", gpus,
                                                   " GPUs that this process may use; give at most ", gpus));
  }
  // On CPUs ranks only share what one would have to itself; more of them than CPUs are a mistake.
  const int cpus = UsableCpus();
  if (devices > cpus) {
    return absl::InvalidArgumentError(
        absl::StrCat("resources.devices: ", devices, " exceeds the ", cpus, " CPUs that this process may use; give 1"));
  }
  return absl::OkStatus();
}

bool IsUserDataError(const absl::Status& status) { return status.GetPayload(kUserDataPayload).has_value(); }

}  // namespace luthier
