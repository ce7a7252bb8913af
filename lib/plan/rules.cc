#include "lib/plan/rules.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace luthier {
namespace {

// Sizes that the rules below share.
constexpr int64_t kMediumDataset = 5000;
constexpr int64_t kWantedSteps = 200;  // fewer leave warm-up and decay no room; more cost time on small data
constexpr int64_t kMinimumSteps = 100;
constexpr int64_t kMaximumAutoEpochs = 20;  // beyond it a handful of rows is only memorised

// The learning-rate law of Tinker's cookbook (hyperparam_utils.py): 5e-5 · 10 for LoRA · (2000 / hidden)^p, with p
// measured for Llama and for Qwen. Other families have no published law: 2e-4, Unsloth's default, and a tenth for full
// training.
double PublishedLearningRate(const ModelConfig& config, bool full) {
  const bool llama = config.model_type == "llama", qwen = absl::StartsWith(config.model_type, "qwen");
  if (!llama && !qwen) return full ? 2e-5 : 2e-4;
  return (full ? 5e-5 : 5e-4) * std::pow(2000.0 / static_cast<double>(config.hidden_size), llama ? 0.781 : 0.0775);
}

}  // namespace

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
  const int64_t usable = UsableBytes(device.memory_bytes);
  const int64_t fitting = LargestMicroBatch(model, inputs, usable);
  // Never below one row: that it does not fit is reported with both figures.
  if (fitting < wanted) return {std::max(fitting, max_length), absl::StrCat(fitting, " tokens fit into memory")};
  return {wanted, absl::StrCat("keeps ", cuda ? "a GPU" : "a CPU", " busy; ", fitting, " would fit into memory")};
}

// Half as slow again, so only where not even one row fits without it.
Choice<bool> ChooseCheckpointing(const ModelFacts& model, MemoryInputs inputs, const DeviceFacts& device,
                                 int64_t max_length) {
  if (device.memory_bytes == 0) return {false, "default: faster; memory unknown"};
  const int64_t usable = UsableBytes(device.memory_bytes);
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

// A row is never divided, so the longest one is the least that a forward pass takes.
int64_t LargestForward(const TrainingSpec& training, const DatasetFacts& dataset) {
  const int64_t longest = dataset.longest_row > 0 ? std::min(dataset.longest_row, *training.max_length) : 0;
  return std::max(*training.micro_batch_tokens, longest);
}

}  // namespace luthier
