#include "lib/plan/resolve.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/fitting.h"
#include "lib/plan/rules.h"
#include "lib/plan/warnings.h"

namespace luthier {
namespace {

std::string Text(const std::string& value) { return value; }
std::string Text(bool value) { return value ? "true" : "false"; }
std::string Text(int64_t value) { return absl::StrCat(value); }
std::string Text(double value) { return absl::StrCat(value); }

// Settles one field after another and keeps the list for the user.
class Settler {
 public:
  explicit Settler(std::vector<ResolvedValue>& values) : values_(values) {}

  template <typename T>
  void Settle(const char* field, std::optional<T>& target, const Choice<T>& choice) {
    const bool given = target.has_value();
    if (!given) target = choice.value;
    values_.push_back({field, Text(*target), given ? "given" : choice.reason});
  }

  void Record(const char* field, std::string value, std::string reason) {
    values_.push_back({field, std::move(value), std::move(reason)});
  }

 private:
  std::vector<ResolvedValue>& values_;
};

// A metric that the task's answers do not have would choose by something else.
absl::Status CheckMetric(const Recipe& recipe) {
  static const std::map<std::string, std::vector<std::string>> metrics = {
      {"classification", {"exact_match", "loss"}},
      {"ner", {"field_f1", "json_equality", "exact_match", "loss"}},
      {"extraction", {"field_f1", "json_equality", "exact_match", "loss"}},
      {"qa", {"exact_match", "field_f1", "loss"}},
      {"tool_calling", {"json_equality", "field_f1", "exact_match", "loss"}},
      {"chat", {"loss", "exact_match"}},
      {"text", {"loss"}}};
  const std::vector<std::string>& fitting = metrics.at(recipe.task);
  const std::optional<std::string>& metric = recipe.evaluation.metric;
  if (!metric || std::find(fitting.begin(), fitting.end(), *metric) != fitting.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("evaluation.metric: ", *metric, " does not fit task: ", recipe.task,
                                                 "; give ", absl::StrJoin(fitting, ", "), ", or auto"));
}

absl::Status CheckInputs(const Recipe& recipe, const ModelConfig& config, const DatasetFacts& dataset) {
  if (dataset.rows <= 0) return absl::InvalidArgumentError("dataset: has no rows; give at least one");
  constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();  // lib/dataset/batches.h counts so far
  if (dataset.rows > kMaxRows) {
    return absl::InvalidArgumentError(absl::StrCat("dataset: an epoch has ", dataset.rows, " rows; give at most ",
                                                   kMaxRows, ", by smaller weights or fewer rows"));
  }
  if (!dataset.has_validation && (recipe.evaluation.patience || recipe.checkpoint.publish == "best")) {
    return absl::InvalidArgumentError(
        absl::StrCat(recipe.evaluation.patience ? "evaluation.patience: " : "checkpoint.publish: best ",
                     "needs a validation part; give dataset.validation, or remove the field"));
  }
  if (recipe.training.max_length && *recipe.training.max_length > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("training.max_length: ", *recipe.training.max_length,
                                                   " exceeds the model's context; give at most ",
                                                   config.max_position_embeddings, ", or auto"));
  }
  return CheckMetric(recipe);
}

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9); }

void SettleLora(LoraSpec& lora, const ModelConfig& model, const DatasetFacts& dataset, Settler& settler) {
  if (!lora.start_from.empty()) settler.Record("lora.start_from", lora.start_from, "given");
  settler.Settle("lora.rank", lora.rank, ChooseRank(dataset));
  settler.Settle("lora.alpha", lora.alpha, ChooseAlpha());
  if (!lora.target_pattern.empty()) {
    settler.Record("lora.target_pattern", lora.target_pattern, "given");
  } else if (!lora.target_modules.empty()) {
    settler.Record("lora.target_modules", absl::StrJoin(lora.target_modules, ", "), "given");
  } else if (lora.target_parameters.empty()) {
    settler.Record("lora.target_modules", "all-linear",
                   model.experts ? "experts have adapters only where lora.target_parameters names them"
                                 : "attention alone learns less at equal size");
  }
  if (!lora.target_parameters.empty())
    settler.Record("lora.target_parameters", absl::StrJoin(lora.target_parameters, ", "), "given");
  settler.Settle("lora.dropout", lora.dropout, Choice<double>{0, "default"});
  settler.Settle("lora.rslora", lora.rslora, Choice<bool>{false, "default"});
  settler.Settle("lora.dora", lora.dora, Choice<bool>{false, "default"});
  if (lora.plus_ratio) settler.Record("lora.plus_ratio", Text(*lora.plus_ratio), "given");
  if (!lora.modules_to_save.empty())
    settler.Record("lora.modules_to_save", absl::StrJoin(lora.modules_to_save, ", "), "given");
}

// Length, epochs and batch. Returns how many steps they make.
int64_t SettleSteps(TrainingSpec& training, const ModelConfig& model, const DatasetFacts& dataset, Settler& settler) {
  settler.Settle("training.epochs", training.epochs, ChooseEpochs(dataset));
  settler.Settle("training.max_length", training.max_length, ChooseMaxLength(model, dataset));
  const double tokens_per_row = TokensPerRow(dataset, *training.max_length);
  const int64_t batch_rows = BatchRows(static_cast<double>(dataset.rows), *training.epochs);
  const auto batch_tokens = static_cast<int64_t>(std::ceil(static_cast<double>(batch_rows) * tokens_per_row));
  settler.Settle("training.batch_tokens", training.batch_tokens,
                 {std::max(batch_tokens, *training.max_length),
                  absl::StrFormat("%d rows of %.0f tokens, at least one longest row", batch_rows, tokens_per_row)});
  const double all_tokens = static_cast<double>(dataset.rows) * tokens_per_row * *training.epochs;
  const auto steps =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(all_tokens / static_cast<double>(*training.batch_tokens))));
  if (!training.max_steps) return steps;
  settler.Record("training.max_steps", Text(*training.max_steps), "given");
  return std::min(steps, *training.max_steps);
}

// What the optimizer and the encoding of rows need. Requires: the `lora` block is settled.
void SettleTraining(Recipe& recipe, const ModelConfig& model, const DatasetFacts& dataset, const DeviceFacts& device,
                    int64_t steps, Settler& settler) {
  TrainingSpec& training = recipe.training;
  settler.Settle("training.learning_rate", training.learning_rate, ChooseLearningRate(recipe, model, steps));
  settler.Settle("training.schedule", training.schedule, {"linear", "default: down to zero"});
  settler.Settle("training.warmup_ratio", training.warmup_ratio, {0.03, "default"});
  settler.Settle("training.weight_decay", training.weight_decay, {0, "default: fine-tuning is short"});
  settler.Settle("training.beta1", training.beta1, {0.9, "default"});
  settler.Settle("training.beta2", training.beta2, {0.95, "default"});
  settler.Settle("training.optimizer_in_backward", training.optimizer_in_backward, {false, "default"});
  if (!*training.optimizer_in_backward) settler.Settle("training.clip_norm", training.clip_norm, {1.0, "default"});
  settler.Settle("training.seed", training.seed, {0, "default"});
  settler.Settle("training.precision", training.precision, ChoosePrecision(device));
  settler.Settle("training.order", training.order, {"shuffled", "default"});
  settler.Settle("training.loss_on", training.loss_on, ChooseLossOn(recipe, dataset));
  settler.Settle("training.too_long", training.too_long, {"refuse", "default: nothing is cut unseen"});
}

// What bounds memory. Requires: all else of training is settled. Errors: RESOURCE_EXHAUSTED.
absl::StatusOr<MemoryEstimate> SettleMemory(Recipe& recipe, const ModelFacts& model, const DatasetFacts& dataset,
                                            const DeviceFacts& device, Settler& settler) {
  TrainingSpec& training = recipe.training;
  MemoryInputs inputs = MemoryInputsOf(recipe, model.config);
  inputs.cuda = device.kind == DeviceFacts::Kind::kCuda;
  const bool leaves_checkpointing_open = !training.activation_checkpointing;
  settler.Settle("training.activation_checkpointing", training.activation_checkpointing,
                 ChooseCheckpointing(model, inputs, device, *training.max_length));
  inputs.activation_checkpointing = *training.activation_checkpointing;
  settler.Settle("training.micro_batch_tokens", training.micro_batch_tokens,
                 ChooseMicroBatch(model, inputs, device, *training.batch_tokens, *training.max_length));
  inputs.micro_batch_tokens = LargestForward(training, dataset);
  inputs.accumulates = *training.batch_tokens > *training.micro_batch_tokens;
  const MemoryEstimate memory = EstimateMemory(model, inputs);
  const int64_t usable = UsableBytes(device.memory_bytes);
  if (device.memory_bytes == 0 || memory.total <= usable) return memory;
  // It is chosen for this device, and would not be for a larger one.
  if (leaves_checkpointing_open) inputs.activation_checkpointing = false;
  return absl::ResourceExhaustedError(
      absl::StrCat("the job needs about ", Gigabytes(EstimateMemory(model, inputs).total), " and the device has ",
                   Gigabytes(device.memory_bytes), "; give ", WhatWouldFit(recipe, model, dataset, inputs, usable)));
}

void SettleEvaluation(const std::string& task, const DatasetFacts& dataset, int64_t steps, EvaluationSpec& evaluation,
                      Settler& settler) {
  settler.Settle("evaluation.every", evaluation.every, ChooseEvaluationEvery(steps));
  settler.Settle("evaluation.metric", evaluation.metric, ChooseMetric(task, dataset));
  settler.Settle("evaluation.max_rows", evaluation.max_rows,
                 {kScoredRows, "default: the figure is good to about 7 points"});
  settler.Settle("evaluation.max_new_tokens", evaluation.max_new_tokens, ChooseNewTokens(task));
  if (evaluation.patience) settler.Record("evaluation.patience", Text(*evaluation.patience), "given");
}

void SettleCheckpoint(const DatasetFacts& dataset, int64_t steps, CheckpointSpec& checkpoint, Settler& settler) {
  settler.Settle("checkpoint.every", checkpoint.every, ChooseCheckpointEvery(steps));
  settler.Settle("checkpoint.keep", checkpoint.keep,
                 {2, "default: one more than is needed, in case the newest is damaged"});
  settler.Settle("checkpoint.publish", checkpoint.publish, ChoosePublished(dataset));
}

void SettleResources(const DeviceFacts& device, ResourceSpec& resources, Settler& settler) {
  settler.Settle("resources.nodes", resources.nodes, {1, "default"});
  settler.Settle("resources.devices", resources.devices, {1, "default"});
  settler.Settle("resources.threads", resources.threads, {device.threads, "the CPUs of the device"});
}

}  // namespace

std::string LossOnBeforeRowsAreKnown(const Recipe& recipe) {
  return recipe.training.loss_on.value_or(ChooseLossOn(recipe, {.format = "messages"}).value);
}

// In the order of the job file, as far as one value does not depend on a later one.
absl::StatusOr<ResolvedSpec> Resolve(const Recipe& recipe, const ModelFacts& model, const DatasetFacts& dataset,
                                     const DeviceFacts& device) {
  LUTHIER_RETURN_IF_ERROR(CheckInputs(recipe, model.config, dataset));
  ResolvedSpec resolved;
  resolved.recipe = recipe;
  Recipe& settled = resolved.recipe;
  Settler settler(resolved.values);
  settler.Record("tuning", recipe.tuning, recipe.tuning == "lora" ? "default" : "given");
  if (!recipe.chat_template.empty()) settler.Record("chat_template", "the job's own", "given");
  if (!recipe.template_date.empty()) settler.Record("template_date", recipe.template_date, "given");
  if (recipe.tuning == "lora") {
    SettleLora(settled.lora, model.config, dataset, settler);
    LUTHIER_RETURN_IF_ERROR(CheckAdapterNames(AdapterConfigOf(settled.lora, model.config), model.config));
  } else {
    LUTHIER_RETURN_IF_ERROR(CheckFrozenNames(recipe.training.freeze, model.config));
  }
  // Learning rate and intervals depend on the number of steps.
  const int64_t steps = SettleSteps(settled.training, model.config, dataset, settler);
  resolved.total_steps = steps;
  SettleTraining(settled, model.config, dataset, device, steps, settler);
  LUTHIER_ASSIGN_OR_RETURN(resolved.memory, SettleMemory(settled, model, dataset, device, settler));
  SettleEvaluation(recipe.task, dataset, steps, settled.evaluation, settler);
  SettleCheckpoint(dataset, steps, settled.checkpoint, settler);
  SettleResources(device, settled.resources, settler);
  resolved.warnings = WarningsOf(recipe, settled, model.config, dataset, steps);
  return resolved;
}

nlohmann::json ToJson(const std::vector<ResolvedValue>& values) {
  nlohmann::json list = nlohmann::json::array();
  for (const ResolvedValue& value : values) {
    list.push_back({{"field", value.field}, {"value", value.value}, {"reason", value.reason}});
  }
  return list;
}

}  // namespace luthier
