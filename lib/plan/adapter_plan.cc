#include "lib/plan/adapter_plan.h"

#include <vector>

#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

// With so many experts of each layer that has them.
int64_t CountParameters(const AdapterConfig& adapter, const ModelConfig& model, int64_t experts) {
  int64_t parameters = 0;
  for (const LinearLayer& linear : TargetedLayers(adapter, model)) {
    const int64_t ranks = adapter.RankOf(linear.name()) * (linear.experts > 0 ? experts : 1);
    parameters += ranks * (linear.in + linear.out) + (adapter.dora ? linear.out : 0);
  }
  for (const auto& [name, shape] : SavedTensors(adapter, model)) parameters += NumElements(shape);
  return parameters;
}

}  // namespace

AdapterConfig AdapterConfigOf(const LoraSpec& lora, const ModelConfig& model) {
  AdapterConfig adapter;
  adapter.rank = *lora.rank;
  adapter.alpha = *lora.alpha;
  adapter.dropout = *lora.dropout;
  adapter.rslora = *lora.rslora;
  adapter.dora = lora.dora.value_or(false);
  adapter.exclude_modules = lora.exclude_modules;
  if (!lora.exclude_pattern.empty()) adapter.exclude_regex = lora.exclude_pattern;
  adapter.layers_to_transform.assign(lora.layers.begin(), lora.layers.end());
  adapter.rank_pattern.assign(lora.rank_pattern.begin(), lora.rank_pattern.end());
  adapter.alpha_pattern.assign(lora.alpha_pattern.begin(), lora.alpha_pattern.end());
  adapter.modules_to_save = lora.modules_to_save;
  adapter.target_parameters = lora.target_parameters;
  if (!lora.target_pattern.empty()) {
    adapter.target_regex = lora.target_pattern;
  } else if (!lora.target_modules.empty() || !lora.target_parameters.empty()) {
    adapter.target_modules = lora.target_modules;
  } else {
    // Not every reader knows `all-linear`, and PEFT takes it for experts and their router, too.
    adapter.target_modules = LinearLayerNames(model);
  }
  return adapter;
}

void TakeShapeOf(const AdapterConfig& adapter, LoraSpec& lora) {
  lora.rank = adapter.rank;
  lora.alpha = adapter.alpha;
  lora.rslora = adapter.rslora;
  lora.dora = adapter.dora;
  lora.target_modules = adapter.target_modules;
  lora.target_pattern = adapter.target_regex.value_or("");
  lora.target_parameters = adapter.target_parameters;
  lora.exclude_modules = adapter.exclude_modules;
  lora.exclude_pattern = adapter.exclude_regex.value_or("");
  lora.layers.assign(adapter.layers_to_transform.begin(), adapter.layers_to_transform.end());
  lora.rank_pattern = {adapter.rank_pattern.begin(), adapter.rank_pattern.end()};
  lora.alpha_pattern = {adapter.alpha_pattern.begin(), adapter.alpha_pattern.end()};
  lora.modules_to_save = adapter.modules_to_save;
}

int64_t TrainedParameters(const AdapterConfig& adapter, const ModelConfig& model) {
  return CountParameters(adapter, model, model.experts ? model.experts->count : 0);
}

int64_t ParametersOfAToken(const AdapterConfig& adapter, const ModelConfig& model) {
  return CountParameters(adapter, model, model.experts ? model.experts->per_token : 0);
}

}  // namespace luthier
