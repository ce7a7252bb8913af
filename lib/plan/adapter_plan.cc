#include "lib/plan/adapter_plan.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

bool IsEndOf(const std::string& name, const std::string& module) {
  return module == name || module.ends_with("." + name);
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
  adapter.layers_to_transform.assign(lora.layers.begin(), lora.layers.end());
  adapter.rank_pattern = lora.rank_pattern;
  adapter.alpha_pattern = lora.alpha_pattern;
  adapter.modules_to_save = lora.modules_to_save;
  if (!lora.target_pattern.empty()) {
    adapter.target_regex = lora.target_pattern;
  } else if (!lora.target_modules.empty()) {
    adapter.target_modules = lora.target_modules;
  } else if (model.experts) {
    adapter.all_linear = true;  // by names PEFT would also adapt the experts
  } else {
    adapter.target_modules = LinearLayerNames(model);  // every reader knows lists, not every one `all-linear`
  }
  return adapter;
}

int64_t TrainedParameters(const AdapterConfig& adapter, const ModelConfig& model) {
  int64_t parameters = 0;
  for (const LinearLayer& linear : AdaptableLayers(model)) {
    if (!adapter.Targets(linear.module, linear.layer)) continue;
    parameters += adapter.RankOf(linear.module) * (linear.in + linear.out) + (adapter.dora ? linear.out : 0);
  }
  for (const auto& [name, shape] : SavedTensors(adapter, model)) parameters += NumElements(shape);
  return parameters;
}

absl::Status CheckNames(const LoraSpec& lora, const ModelConfig& model) {
  const std::vector<LinearLayer> linears = AdaptableLayers(model);
  const auto names_a_layer = [&](const std::string& name) {
    return std::any_of(linears.begin(), linears.end(),
                       [&](const LinearLayer& linear) { return IsEndOf(name, linear.module); });
  };
  for (const auto& [field, names] :
       {std::pair("target_modules", &lora.target_modules), std::pair("exclude_modules", &lora.exclude_modules)}) {
    for (const std::string& name : *names) {
      if (names_a_layer(name)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("lora.", field, ": '", name, "' is no linear layer of the model; give ",
                       absl::StrJoin(LinearLayerNames(model), ", "), ", lm_head, or all-linear"));
    }
  }
  for (const std::string& name : lora.modules_to_save) {
    AdapterConfig alone;
    alone.modules_to_save = {name};
    if (!SavedTensors(alone, model).empty()) continue;
    return absl::InvalidArgumentError(absl::StrCat("lora.modules_to_save: '", name,
                                                   "' is no module of the model; give names like "
                                                   "embed_tokens, lm_head, model.norm"));
  }
  return absl::OkStatus();
}

}  // namespace luthier
