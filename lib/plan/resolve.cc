#include "lib/plan/resolve.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/plan/adapter_plan.h"

namespace luthier {
namespace {

// A chosen value and why.
template <typename T>
struct Choice {
  T value;
  std::string reason;
};

// Sizes that the rules below share.
constexpr int64_t kSmallDataset = 1000;
constexpr int64_t kMediumDataset = 5000;
constexpr int64_t kWantedSteps = 200;  // fewer leave warm-up and decay no room; more cost time on small data
constexpr int64_t kMinimumSteps = 100;
constexpr int64_t kMaximumAutoEpochs = 20;  // beyond it a handful of rows is only memorised

// Default 32: Tinker's; a small dataset does not fill it, so half of it below 1,000 rows.
Choice<int64_t> ChooseRank(const DatasetFacts& dataset) {
  if (dataset.rows < kSmallDataset)
    return {16, absl::StrCat("fewer than ", kSmallDataset, " rows (", dataset.rows, ")")};
  return {32, "default for 1000 rows and more"};
}

// With alpha fixed the best learning rate hardly depends on the rank. Source: "LoRA without regret", reproduced in TRL.
Choice<double> ChooseAlpha() { return {32, "fixed, so that the learning rate fits every rank"}; }

// 3 passes below 5,000 rows, else 1 (Unsloth's 1 to 3); more only where so few rows would give under 100 steps.
Choice<double> ChooseEpochs(const DatasetFacts& dataset) {
  constexpr int64_t kSmallestBatch = 8;
  if (dataset.rows >= kMediumDataset) return {1, absl::StrCat(kMediumDataset, " rows or more (", dataset.rows, ")")};
  const int64_t needed = (kMinimumSteps * kSmallestBatch + dataset.rows - 1) / dataset.rows;
  if (needed <= 3) return {3, absl::StrCat("fewer than ", kMediumDataset, " rows (", dataset.rows, ")")};
  const int64_t epochs = std::min(needed, kMaximumAutoEpochs);
  return {static_cast<double>(epochs),
          absl::StrCat(dataset.rows, " rows need ", epochs, " passes for about ", kMinimumSteps, " steps")};
}

// Rows a step: enough steps on small data, at most 128 on large (LoRA tolerates large batches worse).
int64_t BatchRows(double rows, double epochs) {
  return static_cast<int64_t>(std::clamp(rows * epochs / kWantedSteps, 8.0, 128.0));
}

// The learning-rate law of Tinker's cookbook (hyperparam_utils.py): 5e-5 · 10 for LoRA · (2000 / hidden)^p, with p
// measured for Llama and for Qwen. Other families have no published law: 2e-4, Unsloth's default, and a tenth for full
// training.
double PublishedLearningRate(const ModelConfig& config, bool full) {
  const bool llama = config.model_type == "llama", qwen = absl::StartsWith(config.model_type, "qwen");
  if (!llama && !qwen) return full ? 2e-5 : 2e-4;
  return (full ? 5e-5 : 5e-4) * std::pow(2000.0 / static_cast<double>(config.hidden_size), llama ? 0.781 : 0.0775);
}

Choice<double> ChooseLearningRate(const Recipe& recipe, const ModelConfig& config, int64_t steps) {
  const bool full = recipe.tuning == "full";
  double rate = PublishedLearningRate(config, full);
  std::string reason =
      absl::StrCat(full ? "full training" : "LoRA", " of ", config.model_type, ", hidden size ", config.hidden_size);
  if (steps < kMinimumSteps) {
    rate *= 1.5;  // a short run has to move faster
    absl::StrAppend(&reason, "; ×1.5 below ", kMinimumSteps, " steps");
  }
  if (!full) {
    // The law holds for the scale 32 / rank; another scale s moves the weights s · rank / 32 times as far.
    const double rank = static_cast<double>(*recipe.lora.rank);
    const double scale = *recipe.lora.alpha / (*recipe.lora.rslora ? std::sqrt(rank) : rank);
    const double correction = (32.0 / rank) / scale;
    if (std::abs(correction - 1) > 1e-9) {
      rate *= correction;
      absl::StrAppend(&reason, "; ×", absl::StrFormat("%.3g", correction), " for the scale ",
                      absl::StrFormat("%.3g", scale));
    }
  }
  constexpr double kHighest = 1e-2;  // Adam diverges above it whatever the model
  // Two digits are all that the rule can know, and all that a person wants to read.
  const double rounded = std::strtod(absl::StrFormat("%.1e", std::min(rate, kHighest)).c_str(), nullptr);
  return {rounded, reason};
}

// The longest row, rounded up so that equal lengths come up again and memory is reused.
Choice<int64_t> ChooseMaxLength(const ModelConfig& config, const DatasetFacts& dataset) {
  constexpr int64_t kRounding = 16;
  constexpr int64_t kUncounted = 2048;
  const int64_t context = config.max_position_embeddings;
  if (dataset.longest_row == 0) {
    return {std::min(context, kUncounted), "rows not counted yet; the model's context, at most 2048"};
  }
  const int64_t rounded = (dataset.longest_row + kRounding - 1) / kRounding * kRounding;
  if (rounded < context) return {rounded, absl::StrCat("longest row: ", dataset.longest_row, " tokens")};
  return {context, absl::StrCat("the model's context; longest row: ", dataset.longest_row, " tokens")};
}

double TokensPerRow(const DatasetFacts& dataset, int64_t max_length) {
  if (dataset.tokens == 0) return static_cast<double>(max_length);
  return std::max(1.0, static_cast<double>(dataset.tokens) / static_cast<double>(dataset.rows));
}

// All of a step's tokens at once if memory allows, up to what keeps the device busy.
Choice<int64_t> ChooseMicroBatch(const ModelFacts& model, const MemoryInputs& inputs, const DeviceFacts& device,
                                 int64_t batch_tokens, int64_t max_length) {
  const bool cuda = device.kind == DeviceFacts::Kind::kCuda;
  const int64_t busy = cuda ? 16'384 : 2'048;
  // A step may stand over its aim by a row, and should not be two micro-batches for it.
  const int64_t wanted = std::max(max_length, std::min(batch_tokens + max_length, busy));
  if (device.memory_bytes == 0) return {wanted, "one step at most; memory unknown"};
  const auto usable = static_cast<int64_t>(kUsableMemory * static_cast<double>(device.memory_bytes));
  const int64_t fitting = LargestMicroBatch(model, inputs, usable);
  // Never below one row: that it does not fit is reported with both figures.
  if (fitting < wanted) return {std::max(fitting, max_length), absl::StrCat(fitting, " tokens fit into memory")};
  return {wanted, absl::StrCat("keeps ", cuda ? "a GPU" : "a CPU", " busy; ", fitting, " would fit into memory")};
}

// Half as slow again, so only where not even one row fits without it.
Choice<bool> ChooseCheckpointing(const ModelFacts& model, MemoryInputs inputs, const DeviceFacts& device,
                                 int64_t max_length) {
  if (device.memory_bytes == 0) return {false, "default: faster; memory unknown"};
  const auto usable = static_cast<int64_t>(kUsableMemory * static_cast<double>(device.memory_bytes));
  if (LargestMicroBatch(model, inputs, usable) >= max_length) return {false, "default: faster, and a longest row fits"};
  inputs.activation_checkpointing = true;
  if (LargestMicroBatch(model, inputs, usable) >= max_length) return {true, "a longest row fits into memory only so"};
  return {false, "default"};
}

Choice<std::string> ChoosePublished(const DatasetFacts& dataset) {
  if (dataset.has_validation) return {"best", "there is a validation part to choose by"};
  return {"last", "no validation part to choose by"};
}

Choice<std::string> ChoosePrecision(const DeviceFacts& device) {
  if (device.kind == DeviceFacts::Kind::kCpu) return {"fp32", "CPU"};
  if (device.bf16) return {"bf16", "GPU with bf16"};
  return {"fp32", "GPU without bf16"};
}

Choice<std::string> ChooseLossOn(const Recipe& recipe, const DatasetFacts& dataset) {
  if (recipe.task == "text" || dataset.format == "text") return {"all", "plain text"};
  if (dataset.format == "prompt_completion") return {"completion", "rows have prompt and completion"};
  if (dataset.format == "input_ids") return {"assistant", "rows have labels, which decide"};
  return {"assistant", "rows are conversations"};
}

Choice<std::string> ChooseMetric(const std::string& task, const DatasetFacts& dataset) {
  if (dataset.format == "text") return {"loss", "rows have no answers"};
  if (task == "ner" || task == "extraction") return {"field_f1", "answers are records"};
  if (task == "tool_calling") return {"json_equality", "answers are calls"};
  if (task == "chat" || task == "text") return {"loss", "answers have no single right form"};
  return {"exact_match", absl::StrCat("task ", task)};
}

Choice<int64_t> ChooseNewTokens(const std::string& task) {
  if (task == "classification") return {32, "a label is short"};
  return {256, absl::StrCat("task ", task)};
}

// Every tenth of the run, so a killed run loses little, and at most 500 steps apart, so a long one does not either.
Choice<int64_t> ChooseCheckpointEvery(int64_t steps) {
  return {std::clamp<int64_t>((steps + 9) / 10, 1, 500), absl::StrCat("a tenth of ", steps, " steps, at most 500")};
}

Choice<int64_t> ChooseEvaluationEvery(int64_t steps) {
  return {std::clamp<int64_t>((steps + 4) / 5, 1, 1000), absl::StrCat("a fifth of ", steps, " steps, at most 1000")};
}

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

// A trained parameter holds about 2 bits ("LoRA without regret"); an unseen answer carries about 1 nat a token, 1.44
// bits.
void WarnAboutCapacity(const DatasetFacts& dataset, int64_t adapter_parameters, std::vector<std::string>& warnings) {
  const double bits = 1.44 * static_cast<double>(dataset.trained_tokens);
  const double capacity = 2.0 * static_cast<double>(adapter_parameters);
  if (bits <= capacity) return;
  warnings.push_back(
      absl::StrFormat("the adapter holds about %.1f Mbit and the answers carry about %.1f Mbit: give a higher "
                      "lora.rank, or tuning: full",
                      capacity / 1e6, bits / 1e6));
}

void WarnAboutPlusRatio(const LoraSpec& lora, const ModelConfig& model, std::vector<std::string>& warnings) {
  const LinearLayer embedding = EmbeddingLayer(model);
  if (!lora.plus_ratio || !AdapterConfigOf(lora, model).Targets(embedding.module, embedding.layer)) return;
  warnings.push_back(absl::StrCat("lora.plus_ratio: with it the adapter on the embedding learns at ",
                                  kPlusEmbeddingRate,
                                  " whatever training.learning_rate is, as with PEFT; leave lora.plus_ratio out if it "
                                  "is to learn like the others"));
}

// As with PEFT, parameters of all layers are adapted then.
void WarnAboutLayers(const LoraSpec& lora, std::vector<std::string>& warnings) {
  if (lora.layers.empty() || lora.target_parameters.empty()) return;
  warnings.emplace_back(
      "lora.layers: does not act on lora.target_parameters; name layers there too, as in "
      "layers.0.mlp.experts.down_proj, if only these are meant");
}

// What is known only when somebody serves the adapter is known too late (docs/vllm.md).
void WarnAboutServing(const LoraSpec& lora, const ModelConfig& model, std::vector<std::string>& warnings) {
  constexpr absl::string_view kRemedy =
      "vLLM loads no such adapter; there, serve it merged with its base (luthier model export --format merged)";
  if (lora.dora.value_or(false)) warnings.push_back(absl::StrCat("lora.dora: ", kRemedy));
  if (!lora.modules_to_save.empty()) warnings.push_back(absl::StrCat("lora.modules_to_save: ", kRemedy));
  const std::vector<LinearLayer> targeted = TargetedLayers(AdapterConfigOf(lora, model), model);
  const bool outside_layers =
      std::any_of(targeted.begin(), targeted.end(), [](const LinearLayer& layer) { return layer.layer < 0; });
  const std::set<std::string> served = {"granite", "llama", "phi3", "qwen3", "qwen3_moe"};
  if (outside_layers && !served.contains(model.model_type)) {
    warnings.emplace_back(
        "lora.target_modules: in this family vLLM refuses adapters on lm_head and embed_tokens, or computes something "
        "else with them; there, serve the model merged (luthier model export --format merged)");
  }
  if (std::none_of(targeted.begin(), targeted.end(), [](const LinearLayer& layer) { return layer.experts > 0; }))
    return;
  warnings.emplace_back(
      "lora.target_parameters: vLLM loads adapters on experts only with --enable-mixed-moe-lora-format and "
      "is_3d_lora_weight (docs/vllm.md), or merged with their base (luthier model export --format merged)");
}

const char* FateOfLongRows(const std::string& too_long) {
  if (too_long == "truncate") return "cut at their end";
  if (too_long == "keep_answer") return "cut in front of their last answer";
  if (too_long == "drop") return "left out";
  return "refused";
}

// A row is never divided, so the longest one is the least that a forward pass takes.
int64_t LargestForward(const TrainingSpec& training, const DatasetFacts& dataset) {
  const int64_t longest = dataset.longest_row > 0 ? std::min(dataset.longest_row, *training.max_length) : 0;
  return std::max(*training.micro_batch_tokens, longest);
}

void WarnAboutData(const Recipe& recipe, const DatasetFacts& dataset, std::vector<std::string>& warnings) {
  if (dataset.truncated + dataset.dropped > 0) {
    warnings.push_back(absl::StrCat("rows longer than training.max_length, ", *recipe.training.max_length,
                                    " tokens: ", dataset.truncated, " are cut and ", dataset.dropped, " left out"));
  } else if (dataset.longest_row > *recipe.training.max_length) {
    warnings.push_back(absl::StrCat("the longest row has ", dataset.longest_row, " tokens, training.max_length is ",
                                    *recipe.training.max_length, ": longer rows are ",
                                    FateOfLongRows(*recipe.training.too_long)));
  }
  if (const int64_t largest = LargestForward(recipe.training, dataset); largest > *recipe.training.micro_batch_tokens) {
    warnings.push_back(absl::StrCat("the longest row has ", largest, " tokens, training.micro_batch_tokens is ",
                                    *recipe.training.micro_batch_tokens,
                                    ": such a row is a micro-batch by itself, and memory is planned for it; give a "
                                    "smaller training.max_length to bound it"));
  }
  if (recipe.tuning == "full" && dataset.rows < kSmallDataset) {
    warnings.push_back(
        absl::StrCat("full training on ", dataset.rows, " rows forgets quickly; tuning: lora forgets less"));
  }
  if (*recipe.training.epochs > 10) {
    warnings.push_back(
        absl::StrCat(*recipe.training.epochs, " epochs repeat each row often; compare training and validation loss"));
  }
}

// Epochs that were chosen for few rows end before the steps that were asked for.
void WarnAboutSteps(const TrainingSpec& training, int64_t steps, std::vector<std::string>& warnings) {
  if (!training.max_steps || *training.max_steps <= steps) return;
  warnings.push_back(absl::StrCat("training.max_steps: ", *training.max_steps, " are not reached: ", *training.epochs,
                                  " epochs are ", steps, " steps; give more training.epochs to take more"));
}

// Fields without effect. A value that would be chosen anyway is no wish of the user's: a server settles every value of
// a spec before a trainer reads it.
void WarnAboutEvaluation(const Recipe& given, const DatasetFacts& dataset, int64_t steps,
                         std::vector<std::string>& warnings) {
  if (dataset.has_validation) return;
  const auto warn = [&](const char* field, const auto& value) {
    warnings.push_back(absl::StrCat("evaluation.", field, ": ", value,
                                    " has no effect without a validation part; give dataset.validation"));
  };
  const EvaluationSpec& evaluation = given.evaluation;
  if (evaluation.every && *evaluation.every != ChooseEvaluationEvery(steps).value) warn("every", *evaluation.every);
  if (evaluation.metric && *evaluation.metric != "loss" &&  // which leaves out the answers of the test part
      *evaluation.metric != ChooseMetric(given.task, dataset).value) {
    warn("metric", *evaluation.metric);
  }
}

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

}  // namespace

std::string LossOnBeforeRowsAreKnown(const Recipe& recipe) {
  return recipe.training.loss_on.value_or(ChooseLossOn(recipe, {.format = "messages"}).value);
}

absl::StatusOr<ResolvedSpec> Resolve(const Recipe& recipe, const ModelFacts& model, const DatasetFacts& dataset,
                                     const DeviceFacts& device) {
  LUTHIER_RETURN_IF_ERROR(CheckInputs(recipe, model.config, dataset));
  ResolvedSpec resolved;
  resolved.recipe = recipe;
  Settler settler(resolved.values);
  settler.Record("tuning", recipe.tuning, recipe.tuning == "lora" ? "default" : "given");
  if (!recipe.chat_template.empty()) settler.Record("chat_template", "the job's own", "given");
  if (!recipe.template_date.empty()) settler.Record("template_date", recipe.template_date, "given");
  if (recipe.tuning == "lora") {
    SettleLora(resolved.recipe.lora, model.config, dataset, settler);
    LUTHIER_RETURN_IF_ERROR(CheckAdapterNames(AdapterConfigOf(resolved.recipe.lora, model.config), model.config));
  } else {
    LUTHIER_RETURN_IF_ERROR(CheckFrozenNames(recipe.training.freeze, model.config));
  }

  // Length, epochs and batch give the number of steps, on which learning rate and intervals depend.
  TrainingSpec& training = resolved.recipe.training;
  settler.Settle("training.epochs", training.epochs, ChooseEpochs(dataset));
  settler.Settle("training.max_length", training.max_length, ChooseMaxLength(model.config, dataset));
  const double tokens_per_row = TokensPerRow(dataset, *training.max_length);
  const int64_t batch_rows = BatchRows(static_cast<double>(dataset.rows), *training.epochs);
  const auto batch_tokens = static_cast<int64_t>(std::ceil(static_cast<double>(batch_rows) * tokens_per_row));
  settler.Settle("training.batch_tokens", training.batch_tokens,
                 {std::max(batch_tokens, *training.max_length),
                  absl::StrFormat("%d rows of %.0f tokens, at least one longest row", batch_rows, tokens_per_row)});
  const double all_tokens = static_cast<double>(dataset.rows) * tokens_per_row * *training.epochs;
  resolved.total_steps =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(all_tokens / static_cast<double>(*training.batch_tokens))));
  if (training.max_steps) resolved.total_steps = std::min(resolved.total_steps, *training.max_steps);
  if (training.max_steps) settler.Record("training.max_steps", Text(*training.max_steps), "given");
  const int64_t steps = resolved.total_steps;

  settler.Settle("training.learning_rate", training.learning_rate,
                 ChooseLearningRate(resolved.recipe, model.config, steps));
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

  MemoryInputs inputs = MemoryInputsOf(resolved.recipe, model.config);
  inputs.cuda = device.kind == DeviceFacts::Kind::kCuda;
  settler.Settle("training.activation_checkpointing", training.activation_checkpointing,
                 ChooseCheckpointing(model, inputs, device, *training.max_length));
  inputs.activation_checkpointing = *training.activation_checkpointing;
  settler.Settle("training.micro_batch_tokens", training.micro_batch_tokens,
                 ChooseMicroBatch(model, inputs, device, *training.batch_tokens, *training.max_length));
  inputs.micro_batch_tokens = LargestForward(training, dataset);
  inputs.accumulates = *training.batch_tokens > *training.micro_batch_tokens;
  resolved.memory = EstimateMemory(model, inputs);
  if (device.memory_bytes > 0 &&
      static_cast<double>(resolved.memory.total) > kUsableMemory * static_cast<double>(device.memory_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the job needs about ", Gigabytes(resolved.memory.total), " and the device has ",
        Gigabytes(device.memory_bytes),
        "; give a smaller training.max_length or training.micro_batch_tokens, tuning: lora, or a larger device"));
  }

  EvaluationSpec& evaluation = resolved.recipe.evaluation;
  settler.Settle("evaluation.every", evaluation.every, ChooseEvaluationEvery(steps));
  settler.Settle("evaluation.metric", evaluation.metric, ChooseMetric(recipe.task, dataset));
  settler.Settle("evaluation.max_rows", evaluation.max_rows,
                 {kScoredRows, "default: the figure is good to about 7 points"});
  settler.Settle("evaluation.max_new_tokens", evaluation.max_new_tokens, ChooseNewTokens(recipe.task));
  if (evaluation.patience) settler.Record("evaluation.patience", Text(*evaluation.patience), "given");
  CheckpointSpec& checkpoint = resolved.recipe.checkpoint;
  settler.Settle("checkpoint.every", checkpoint.every, ChooseCheckpointEvery(steps));
  settler.Settle("checkpoint.keep", checkpoint.keep,
                 {2, "default: one more than is needed, in case the newest is damaged"});
  settler.Settle("checkpoint.publish", checkpoint.publish, ChoosePublished(dataset));
  settler.Settle("resources.nodes", resolved.recipe.resources.nodes, {1, "default"});
  settler.Settle("resources.devices", resolved.recipe.resources.devices, {1, "default"});
  settler.Settle("resources.threads", resolved.recipe.resources.threads, {device.threads, "the CPUs of the device"});

  if (!inputs.full) {
    WarnAboutCapacity(dataset, inputs.adapter_parameters, resolved.warnings);
    WarnAboutPlusRatio(resolved.recipe.lora, model.config, resolved.warnings);
    WarnAboutLayers(resolved.recipe.lora, resolved.warnings);
    WarnAboutServing(resolved.recipe.lora, model.config, resolved.warnings);
  }
  WarnAboutData(resolved.recipe, dataset, resolved.warnings);
  WarnAboutSteps(training, steps, resolved.warnings);
  WarnAboutEvaluation(recipe, dataset, steps, resolved.warnings);
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
