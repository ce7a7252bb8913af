#include "lib/checkpoint/adapter_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/json_file.h"
#include "lib/checkpoint/name_pattern.h"

namespace luthier {
namespace {

using nlohmann::json;

template <typename T>
T PatternValue(const std::map<std::string, T>& patterns, absl::string_view name, T fallback) {
  for (const auto& [key, value] : patterns) {
    if (MatchesEnd(key, name)) return value;
  }
  return fallback;
}

bool IsUnset(const json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty()) || value == "none";
}

// Fields that change what the adapter computes and that are not implemented.
constexpr const char* kUnsupported[] = {"use_qalora",
                                        "bias",
                                        "lora_bias",
                                        "fan_in_fan_out",
                                        "ensure_weight_tying",
                                        "trainable_token_indices",
                                        "layer_replication",
                                        "use_bdlora",
                                        "alora_invocation_tokens",
                                        "arrow_config",
                                        "kasa_config",
                                        "monteclora_config",
                                        "velora_config"};

// Whether an adapter with this `init_lora_weights` belongs to the base as it is. The others (pissa, olora, corda,
// loftq, …) subtract from the base what A and B begin with, and PEFT does so again when it loads them.
bool KeepsTheBase(const json& init) {
  return init.is_null() || init.is_boolean() || init == "gaussian" || init == "eva" || init == "orthogonal";
}

// A conversion of what is not in the range of its type is undefined.
bool HoldsWholeNumbersOnly(const json& value) {
  if (value.is_structured()) return std::all_of(value.begin(), value.end(), HoldsWholeNumbersOnly);
  return value.is_null() || (value.is_number_integer() && value >= 0 && value <= std::numeric_limits<int>::max());
}

// Names match a whole name or its end at a dot.
bool EndsWithAny(absl::string_view whole, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return whole == name || absl::EndsWith(whole, "." + name); });
}

// `name` as a run of whole components of a dotted path.
bool HasComponents(absl::string_view path, absl::string_view name) {
  return absl::StrContains(absl::StrCat(".", path, "."), absl::StrCat(".", name, "."));
}

}  // namespace

bool AdapterConfig::Targets(absl::string_view module, int layer) const {
  // What is trained whole carries no adapter.
  if (std::any_of(modules_to_save.begin(), modules_to_save.end(),
                  [&](const std::string& name) { return HasComponents(module, name); })) {
    return false;
  }
  if (EndsWithAny(module, exclude_modules) || (exclude_regex && MatchesWhole(*exclude_regex, module))) return false;
  if (!layers_to_transform.empty() &&
      std::find(layers_to_transform.begin(), layers_to_transform.end(), layer) == layers_to_transform.end()) {
    return false;
  }
  if (all_linear) return layer >= 0;
  return target_regex ? MatchesWhole(*target_regex, module) : EndsWithAny(module, target_modules);
}

bool AdapterConfig::TargetsParameter(absl::string_view parameter) const {
  return EndsWithAny(parameter, target_parameters);
}

bool AdapterConfig::Saves(absl::string_view module) const {
  return std::any_of(modules_to_save.begin(), modules_to_save.end(),
                     [&](const std::string& name) { return absl::EndsWith(module, name); });
}

int64_t AdapterConfig::RankOf(absl::string_view name) const { return PatternValue(rank_pattern, name, rank); }

double AdapterConfig::ScaleOf(absl::string_view name) const {
  const double its_alpha = PatternValue(alpha_pattern, name, alpha);
  const auto r = static_cast<double>(RankOf(name));
  return rslora ? its_alpha / std::sqrt(r) : its_alpha / r;
}

absl::StatusOr<AdapterConfig> ParseAdapterConfig(const json& json) {
  std::vector<std::string> violations;
  const auto violation = [&](absl::string_view field, absl::string_view what) {
    violations.push_back(absl::StrCat("adapter_config.json: ", field, ": ", what));
  };
  if (!json.is_object()) return absl::InvalidArgumentError("adapter_config.json: is no JSON object");
  if (json.value("peft_type", nlohmann::json()) != "LORA") violation("peft_type", "must be LORA");
  for (const char* field : kUnsupported) {
    if (json.contains(field) && !IsUnset(json[field]))
      violation(field, absl::StrCat(json[field].dump(), " is not supported"));
  }
  if (const nlohmann::json init = json.value("init_lora_weights", nlohmann::json()); !KeepsTheBase(init)) {
    violation("init_lora_weights",
              absl::StrCat(init.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                           " may change the base's weights, which is not supported; convert the "
                           "adapter to plain LoRA (PEFT: path_initial_model_for_weight_conversion)"));
  }
  for (const char* field : {"r", "rank_pattern", "layers_to_transform"}) {
    if (json.contains(field) && !HoldsWholeNumbersOnly(json[field]))
      violation(field, absl::StrCat(json[field].dump(), " holds what is no whole number from 0 to 2147483647"));
  }
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  AdapterConfig config;
  try {
    config.rank = json.value("r", config.rank);
    config.alpha = json.value("lora_alpha", config.alpha);
    config.dropout = json.value("lora_dropout", 0.0);
    config.rslora = json.value("use_rslora", false);
    config.dora = json.value("use_dora", false);
    if (json.contains("modules_to_save") && !json["modules_to_save"].is_null())
      json["modules_to_save"].get_to(config.modules_to_save);
    if (json.contains("rank_pattern") && !json["rank_pattern"].is_null())
      json["rank_pattern"].get_to(config.rank_pattern);
    if (json.contains("alpha_pattern") && !json["alpha_pattern"].is_null())
      json["alpha_pattern"].get_to(config.alpha_pattern);
    if (json.contains("layers_to_transform") && !json["layers_to_transform"].is_null()) {
      const nlohmann::json& layers = json["layers_to_transform"];
      config.layers_to_transform =
          layers.is_array() ? layers.get<std::vector<int>>() : std::vector<int>{layers.get<int>()};
    }
    if (json.contains("base_model_name_or_path") && json["base_model_name_or_path"].is_string()) {
      config.base_model_name = json["base_model_name_or_path"];
    }
    const nlohmann::json excluded = json.value("exclude_modules", nlohmann::json());
    if (excluded.is_string()) {
      config.exclude_regex = excluded.get<std::string>();
    } else if (!excluded.is_null()) {
      config.exclude_modules = excluded.get<std::vector<std::string>>();
    }
    const nlohmann::json parameters = json.value("target_parameters", nlohmann::json());
    if (parameters.is_array()) {
      config.target_parameters = parameters.get<std::vector<std::string>>();
    } else if (!parameters.is_null()) {
      violation("target_parameters", "must be a list of names");
    }
    const nlohmann::json targets = json.value("target_modules", nlohmann::json());
    if (targets.is_array()) {
      config.target_modules = targets.get<std::vector<std::string>>();
    } else if (targets == "all-linear") {
      config.all_linear = true;
    } else if (targets.is_string()) {
      config.target_regex = targets.get<std::string>();
      if (!config.layers_to_transform.empty())
        violation("layers_to_transform", "goes with a list of target_modules or all-linear only");
    } else if (!targets.is_null() || config.target_parameters.empty()) {
      violation("target_modules", "must be a list of names, a regular expression or all-linear");
    }
  } catch (const nlohmann::json::exception& error) {
    violation("fields", error.what());
  }
  if (!config.target_parameters.empty()) {
    if (config.dora) violation("use_dora", "true goes with no target_parameters, as in PEFT");
    if (config.dropout != 0) violation("lora_dropout", "goes with no target_parameters, as in PEFT; must be 0");
    if (config.all_linear) violation("target_modules", "all-linear goes with no target_parameters; must be a list");
  }
  // The layers of every family are called "layers".
  if (json.contains("layers_pattern") && !IsUnset(json["layers_pattern"]) && json["layers_pattern"] != "layers" &&
      json["layers_pattern"] != nlohmann::json::array({"layers"})) {
    violation("layers_pattern", absl::StrCat(json["layers_pattern"].dump(), " is not supported; supported: layers"));
  }
  if (config.rank < 1) violation("r", absl::StrCat(config.rank, " is out of range; must be 1 or more"));
  if (config.target_regex && !CheckPattern(*config.target_regex).ok())
    violation("target_modules", "is no regular expression");
  if (config.exclude_regex && !CheckPattern(*config.exclude_regex).ok())
    violation("exclude_modules", "is no regular expression");
  for (const auto& [key, rank] : config.rank_pattern) {
    if (rank < 1 || !CheckPattern(key).ok())
      violation("rank_pattern", absl::StrCat("'", key, "' is no pattern with a rank of 1 or more"));
  }
  for (const auto& [key, alpha] : config.alpha_pattern) {
    if (!CheckPattern(key).ok()) violation("alpha_pattern", absl::StrCat("'", key, "' is no pattern"));
  }
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return config;
}

absl::StatusOr<AdapterConfig> ReadAdapterConfig(const std::string& folder) {
  return ReadAdapterConfigFile(folder + "/" + kAdapterConfigFile);
}

absl::StatusOr<AdapterConfig> ReadAdapterConfigFile(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const json parsed, ReadJsonFile(path, "give an adapter folder in PEFT format"));
  return ParseAdapterConfig(parsed);
}

json ToJson(const AdapterConfig& config) {
  json out = {{"peft_type", "LORA"},
              {"task_type", "CAUSAL_LM"},
              {"auto_mapping", nullptr},
              {"base_model_name_or_path", config.base_model_name},
              {"revision", nullptr},
              {"inference_mode", true},
              {"r", config.rank},
              {"lora_alpha", config.alpha},
              {"lora_dropout", config.dropout},
              {"target_modules", config.target_modules},
              {"bias", "none"},
              {"fan_in_fan_out", false},
              {"use_rslora", config.rslora},
              {"use_dora", config.dora},
              {"init_lora_weights", true},
              {"rank_pattern", config.rank_pattern},
              {"alpha_pattern", config.alpha_pattern},
              {"modules_to_save", nullptr},
              {"layers_to_transform", nullptr},
              {"layers_pattern", nullptr}};
  // vLLM and llama.cpp read alpha as an integer where it is one.
  constexpr double kLargestWhole = 1e15;
  if (config.alpha == std::floor(config.alpha) && std::abs(config.alpha) < kLargestWhole)
    out["lora_alpha"] = static_cast<int64_t>(config.alpha);
  if (!config.exclude_modules.empty()) out["exclude_modules"] = config.exclude_modules;
  if (config.exclude_regex) out["exclude_modules"] = *config.exclude_regex;
  if (config.target_regex) out["target_modules"] = *config.target_regex;
  if (config.all_linear) out["target_modules"] = "all-linear";
  if (!config.target_parameters.empty()) out["target_parameters"] = config.target_parameters;
  if (!config.modules_to_save.empty()) out["modules_to_save"] = config.modules_to_save;
  if (!config.layers_to_transform.empty()) out["layers_to_transform"] = config.layers_to_transform;
  return out;
}

}  // namespace luthier
