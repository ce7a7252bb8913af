#include "lib/plan/warnings.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/rules.h"

namespace luthier {
namespace {

// A trained parameter holds about 2 bits ("LoRA without regret"); an unseen answer carries about 1 nat a token, 1.44
// bits.
void WarnAboutCapacity(const DatasetFacts& dataset, const LoraSpec& lora, const ModelConfig& model,
                       std::vector<std::string>& warnings) {
  const double bits = 1.44 * static_cast<double>(dataset.trained_tokens);
  const auto capacity_at = [&](int64_t rank) {
    AdapterConfig adapter = AdapterConfigOf(lora, model);
    adapter.rank = rank;
    return 2.0 * static_cast<double>(TrainedParameters(adapter, model));
  };
  const double capacity = capacity_at(*lora.rank);
  if (bits <= capacity) return;
  // Modules that are trained whole, DoRA's lengths and layers of rank_pattern hold the same at every rank.
  const double of_rank = capacity_at(*lora.rank + 1) - capacity;
  const double needed = of_rank > 0 ? static_cast<double>(*lora.rank) + std::ceil((bits - capacity) / of_rank)
                                    : static_cast<double>(kMaxLoraRank) + 1;
  warnings.push_back(absl::StrFormat(
      "the adapter holds about %.1f Mbit and the answers carry about %.1f Mbit: %s", capacity / 1e6, bits / 1e6,
      needed <= kMaxLoraRank ? absl::StrFormat("give lora.rank: %.0f or higher, or tuning: full", needed)
                             : "no lora.rank holds so much; give tuning: full"));
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

}  // namespace

std::vector<std::string> WarningsOf(const Recipe& given, const Recipe& settled, const ModelConfig& model,
                                    const DatasetFacts& dataset, int64_t steps) {
  std::vector<std::string> warnings;
  if (settled.tuning == "lora") {
    WarnAboutCapacity(dataset, settled.lora, model, warnings);
    WarnAboutPlusRatio(settled.lora, model, warnings);
    WarnAboutLayers(settled.lora, warnings);
    WarnAboutServing(settled.lora, model, warnings);
  }
  WarnAboutData(settled, dataset, warnings);
  WarnAboutSteps(settled.training, steps, warnings);
  WarnAboutEvaluation(given, dataset, steps, warnings);
  return warnings;
}

}  // namespace luthier
