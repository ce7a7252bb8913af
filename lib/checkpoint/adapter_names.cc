#include "lib/checkpoint/adapter_names.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/name_pattern.h"

namespace luthier {
namespace {

bool IsEndOf(const std::string& name, const std::string& module) {
  return module == name || module.ends_with("." + name);
}

std::string WhatExists(const ModelConfig& model) {
  return absl::StrCat(absl::StrJoin(LinearLayerNames(model), ", "), ", lm_head, embed_tokens");
}

absl::Status Refuse(const char* field, absl::string_view value, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("lora.", field, ": ", value, " ", what));
}

absl::Status CheckLinearNames(const char* field, const std::vector<std::string>& names, const ModelConfig& model) {
  const std::vector<LinearLayer> linears = ModuleLayers(model);
  for (const std::string& name : names) {
    const bool exists = std::any_of(linears.begin(), linears.end(),
                                    [&](const LinearLayer& linear) { return IsEndOf(name, linear.module); });
    if (exists) continue;
    return Refuse(field, absl::StrCat("'", name, "'"),
                  absl::StrCat("is no linear layer of the model; give ", WhatExists(model), ", or all-linear"));
  }
  return absl::OkStatus();
}

// PEFT makes parameters of them, and of gate_proj and up_proj one with twice the rank.
absl::Status CheckExperts(const std::vector<std::string>& names, const ModelConfig& model) {
  const std::set<std::string> of_experts = {"gate_proj", "up_proj", "down_proj"};
  for (const std::string& name : names) {
    if (!model.experts || !of_experts.contains(name)) continue;
    return Refuse("target_modules", absl::StrCat("'", name, "'"),
                  "names experts, which are parameters; give lora.target_parameters: [mlp.experts.gate_up_proj, "
                  "mlp.experts.down_proj], and the layers of attention here");
  }
  return absl::OkStatus();
}

absl::Status CheckParameterNames(const std::vector<std::string>& names, const ModelConfig& model) {
  const std::vector<LinearLayer> layers = ParameterLayers(model);
  std::set<std::string> existing;  // without the layers' numbers
  for (const LinearLayer& layer : layers) {
    existing.insert(layer.parameter.substr(absl::StrCat("model.layers.", layer.layer, ".").size()));
  }
  for (const std::string& name : names) {
    const auto is_named = [&](const LinearLayer& layer) { return IsEndOf(name, layer.parameter); };
    // Every weight's name ends so, also of those that take no adapter.
    if (name != "weight" && std::any_of(layers.begin(), layers.end(), is_named)) continue;
    return Refuse("target_parameters", absl::StrCat("'", name, "'"),
                  absl::StrCat("is no parameter that takes an adapter; ",
                               existing.empty() ? "the model has no experts: name its layers in lora.target_modules"
                                                : absl::StrCat("give ", absl::StrJoin(existing, ", "))));
  }
  return absl::OkStatus();
}

// What PEFT refuses beside adapters on parameters.
absl::Status CheckBesideParameters(const AdapterConfig& adapter, const std::vector<LinearLayer>& targeted) {
  if (adapter.target_parameters.empty()) return absl::OkStatus();
  constexpr absl::string_view kRemedy = "goes with no lora.target_parameters, as in PEFT; leave one of them out";
  if (adapter.dora) return Refuse("dora", "true", kRemedy);
  if (adapter.dropout != 0) return Refuse("dropout", absl::StrCat(adapter.dropout), kRemedy);
  for (const LinearLayer& layer : targeted) {
    if (layer.parameter.empty() || !adapter.Saves(layer.module)) continue;
    return Refuse("modules_to_save", absl::StrCat("[", absl::StrJoin(adapter.modules_to_save, ", "), "]"),
                  absl::StrCat("trains whole what lora.target_parameters adapts, ", layer.parameter,
                               "; leave it out of one of them"));
  }
  return absl::OkStatus();
}

// PEFT takes every module whose name ends with the text, at a dot or not: `norm` would be `input_layernorm` as well.
absl::Status CheckSavedNames(const std::vector<std::string>& names, const ModelConfig& model) {
  constexpr absl::string_view kRemedy = "give names like embed_tokens, lm_head, model.norm";
  for (const std::string& name : names) {
    AdapterConfig alone;
    alone.modules_to_save = {name};
    const std::string value = absl::StrCat("'", name, "'");
    const auto saved = SavedTensors(alone, model);
    if (saved.empty()) return Refuse("modules_to_save", value, absl::StrCat("is no module of the model; ", kRemedy));
    for (const auto& [tensor, shape] : saved) {
      const std::string module = tensor.substr(0, tensor.rfind('.'));
      if (absl::StrContains(module, ".experts.")) {
        return Refuse("modules_to_save", value,
                      "names experts, which are no modules of their own in PEFT; give lora.target_parameters");
      }
      if (AnyAround(module, [&](absl::string_view around) { return IsEndOf(name, std::string(around)); })) continue;
      return Refuse("modules_to_save", value,
                    absl::StrCat("is also the end of ", module, ", which PEFT would train too; ", kRemedy));
    }
  }
  return absl::OkStatus();
}

template <typename Value>
absl::Status CheckPatternKeys(const char* field, const Patterns<Value>& patterns,
                              const std::vector<LinearLayer>& targeted) {
  for (const auto& [pattern, value] : patterns) {
    const bool matches = std::any_of(targeted.begin(), targeted.end(), [&, &key = pattern](const LinearLayer& linear) {
      return MatchesEnd(key, linear.name());
    });
    if (matches) continue;
    return Refuse(field, absl::StrCat("'", pattern, "'"),
                  absl::StrCat("matches none of the layers that get an adapter; they are like ", targeted[0].name()));
  }
  return absl::OkStatus();
}

absl::Status CheckLayerNumbers(const std::vector<int>& layers, const ModelConfig& model) {
  for (const int layer : layers) {
    if (layer >= 0 && layer < model.num_layers) continue;
    return Refuse("layers", absl::StrCat(layer),
                  absl::StrCat("is no layer of the model; give numbers from 0 to ", model.num_layers - 1));
  }
  return absl::OkStatus();
}

// All names exist, and yet nothing is left: which field took the last layer away?
absl::Status ExplainNothing(const AdapterConfig& adapter, const ModelConfig& model) {
  if (adapter.target_regex) {
    AdapterConfig alone;
    alone.target_regex = adapter.target_regex;
    if (TargetedLayers(alone, model).empty()) {
      return Refuse("target_pattern", absl::StrCat("'", *adapter.target_regex, "'"),
                    absl::StrCat("matches no linear layer; a pattern must match whole names, which are like ",
                                 LinearLayers(model)[0].module));
    }
  }
  AdapterConfig without = adapter;
  without.layers_to_transform.clear();
  if (!TargetedLayers(without, model).empty()) {
    return Refuse("layers", absl::StrCat("[", absl::StrJoin(adapter.layers_to_transform, ", "), "]"),
                  "leaves none of the targeted layers; the embedding (embed_tokens) lies in none");
  }
  without.exclude_modules.clear();
  without.exclude_regex.reset();
  if (!TargetedLayers(without, model).empty()) {
    const std::string leave = absl::StrCat("leaves no linear layer to adapt; leave one of ", WhatExists(model));
    if (adapter.exclude_regex) return Refuse("exclude_pattern", absl::StrCat("'", *adapter.exclude_regex, "'"), leave);
    return Refuse("exclude_modules", absl::StrCat("[", absl::StrJoin(adapter.exclude_modules, ", "), "]"), leave);
  }
  return Refuse("modules_to_save", absl::StrCat("[", absl::StrJoin(adapter.modules_to_save, ", "), "]"),
                absl::StrCat("trains whole what would get an adapter, and nothing is left to adapt; target others of ",
                             WhatExists(model), ", or give tuning: full"));
}

}  // namespace

std::vector<LinearLayer> TargetedLayers(const AdapterConfig& adapter, const ModelConfig& model) {
  std::vector<LinearLayer> targeted = AdaptableLayers(model);
  std::erase_if(targeted, [&](const LinearLayer& linear) {
    return linear.parameter.empty() ? !adapter.Targets(linear.module, linear.layer)
                                    : !adapter.TargetsParameter(linear.parameter);
  });
  return targeted;
}

std::string StoredUnder(const AdapterConfig& adapter, const LinearLayer& targeted) {
  if (targeted.experts == 0) return targeted.module;
  const std::string experts = targeted.module.substr(0, targeted.module.rfind('.'));
  const bool deeper = IsEndOf("gate_up_proj", targeted.module) && adapter.TargetsParameter(experts + ".down_proj");
  return deeper ? experts + ".base_layer" : experts;
}

absl::Status CheckAdapterNames(const AdapterConfig& adapter, const ModelConfig& model) {
  LUTHIER_RETURN_IF_ERROR(CheckExperts(adapter.target_modules, model));
  LUTHIER_RETURN_IF_ERROR(CheckLinearNames("target_modules", adapter.target_modules, model));
  LUTHIER_RETURN_IF_ERROR(CheckLinearNames("exclude_modules", adapter.exclude_modules, model));
  LUTHIER_RETURN_IF_ERROR(CheckParameterNames(adapter.target_parameters, model));
  LUTHIER_RETURN_IF_ERROR(CheckLayerNumbers(adapter.layers_to_transform, model));
  LUTHIER_RETURN_IF_ERROR(CheckSavedNames(adapter.modules_to_save, model));
  const std::vector<LinearLayer> targeted = TargetedLayers(adapter, model);
  if (targeted.empty()) return ExplainNothing(adapter, model);
  LUTHIER_RETURN_IF_ERROR(CheckBesideParameters(adapter, targeted));
  LUTHIER_RETURN_IF_ERROR(CheckPatternKeys("rank_pattern", adapter.rank_pattern, targeted));
  return CheckPatternKeys("alpha_pattern", adapter.alpha_pattern, targeted);
}

absl::Status CheckFrozenNames(const std::vector<std::string>& patterns, const ModelConfig& model) {
  std::map<std::string, std::vector<int64_t>> left = CheckpointTensors(model);
  const auto all = left;
  for (const std::string& pattern : patterns) {
    if (absl::Status status = CheckPattern(pattern); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("training.freeze: ", status.message()));
    }
    bool matched = false;
    for (const auto& [name, shape] : all) {
      if (!MatchesBeginning(pattern, name)) continue;
      matched = true;
      left.erase(name);
    }
    if (matched) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("training.freeze: '", pattern, "' matches no weight; names are like ", all.begin()->first, ", ",
                     std::next(all.begin(), static_cast<std::ptrdiff_t>(all.size() / 2))->first));
  }
  if (!left.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("training.freeze: [", absl::StrJoin(patterns, ", "),
                                                 "] freezes every weight, and nothing is left to train; remove one"));
}

}  // namespace luthier
