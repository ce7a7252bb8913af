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
using nlohmann::ordered_json;

template <typename T>
T PatternValue(const Patterns<T>& patterns, absl::string_view name, T fallback) {
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

using Violate = absl::FunctionRef<void(absl::string_view field, absl::string_view what)>;

// Puts a field into `target`, which stays what it is where the field is absent or null. `kind`: what it has to be.
template <typename T>
void Read(const json& object, const char* field, T& target, absl::string_view kind, Violate violation) {
  const auto found = object.find(field);
  if (found == object.end() || found->is_null()) return;
  try {
    found->get_to(target);
  } catch (const json::exception&) {
    violation(field, absl::StrCat(found->dump(), " is not ", kind, "; write it as PEFT does"));
  }
}

// The same for a block of patterns, in the order in which they stand.
template <typename T>
void ReadPatterns(const ordered_json& object, const char* field, Patterns<T>& target, absl::string_view kind,
                  Violate violation) {
  const ordered_json patterns = object.value(field, ordered_json());
  if (patterns.is_null()) return;
  if (!patterns.is_object()) {
    violation(field, absl::StrCat(patterns.dump(), " is not ", kind, "; write it as PEFT does"));
    return;
  }
  for (const auto& [key, value] : patterns.items()) {
    try {
      target.emplace_back(key, value.template get<T>());
    } catch (const json::exception&) {
      violation(field, absl::StrCat(key, ": ", value.dump(), " is not a number; write it as PEFT does"));
    }
  }
}

// What changes the mathematics and is not implemented, and what no field of its type could hold.
void CheckFields(const json& object, Violate violation) {
  if (const json type = object.value("peft_type", json()); type != "LORA")
    violation("peft_type", absl::StrCat(type.dump(), " is not supported; must be LORA"));
  for (const char* field : kUnsupported) {
    if (object.contains(field) && !IsUnset(object[field]))
      violation(field, absl::StrCat(object[field].dump(),
                                    " is not supported; merge the adapter into its base with PEFT, and use the result "
                                    "as a base model"));
  }
  if (const json init = object.value("init_lora_weights", json()); !KeepsTheBase(init)) {
    violation("init_lora_weights",
              absl::StrCat(init.dump(-1, ' ', false, json::error_handler_t::replace),
                           " may change the base's weights, which is not supported; convert the "
                           "adapter to plain LoRA (PEFT: path_initial_model_for_weight_conversion)"));
  }
  for (const char* field : {"r", "rank_pattern", "layers_to_transform"}) {
    if (object.contains(field) && !HoldsWholeNumbersOnly(object[field]))
      violation(field, absl::StrCat(object[field].dump(), " holds what is no whole number from 0 to 2147483647"));
  }
}

AdapterConfig ReadFields(const json& object, const ordered_json& ordered, Violate violation) {
  constexpr const char *kNumber = "a number", *kFlag = "true or false", *kNames = "a list of names";
  AdapterConfig config;
  Read(object, "r", config.rank, "a whole number", violation);
  Read(object, "lora_alpha", config.alpha, kNumber, violation);
  Read(object, "lora_dropout", config.dropout, kNumber, violation);
  Read(object, "use_rslora", config.rslora, kFlag, violation);
  Read(object, "use_dora", config.dora, kFlag, violation);
  Read(object, "modules_to_save", config.modules_to_save, kNames, violation);
  ReadPatterns(ordered, "rank_pattern", config.rank_pattern, "a block of names and ranks", violation);
  ReadPatterns(ordered, "alpha_pattern", config.alpha_pattern, "a block of names and numbers", violation);
  Read(object, "target_parameters", config.target_parameters, kNames, violation);
  const json base = object.value("base_model_name_or_path", json());
  if (base.is_string()) config.base_model_name = base.get<std::string>();
  const json layers = object.value("layers_to_transform", json());
  if (layers.is_number()) {
    config.layers_to_transform = {layers.get<int>()};
  } else {
    Read(object, "layers_to_transform", config.layers_to_transform, "a list of layer numbers", violation);
  }
  const json excluded = object.value("exclude_modules", json());
  if (excluded.is_string()) {
    config.exclude_regex = excluded.get<std::string>();
  } else {
    Read(object, "exclude_modules", config.exclude_modules, "a list of names or a regular expression", violation);
  }
  constexpr const char* kTargets = "a list of names, a regular expression or all-linear";
  const json targets = object.value("target_modules", json());
  if (targets == "all-linear") {
    config.all_linear = true;
  } else if (targets.is_string()) {
    config.target_regex = targets.get<std::string>();
    if (!config.layers_to_transform.empty())
      violation("layers_to_transform", "goes with a list of target_modules or all-linear only");
  } else if (targets.is_null() && config.target_parameters.empty()) {
    violation("target_modules", absl::StrCat("is missing; must be ", kTargets));
  } else {
    Read(object, "target_modules", config.target_modules, kTargets, violation);
  }
  return config;
}

// What the values of a config must be, alone and beside each other.
void CheckValues(const AdapterConfig& config, const json& object, Violate violation) {
  if (!config.target_parameters.empty()) {
    if (config.dora) violation("use_dora", "true goes with no target_parameters, as in PEFT");
    if (config.dropout != 0) violation("lora_dropout", "goes with no target_parameters, as in PEFT; must be 0");
    if (config.all_linear) violation("target_modules", "all-linear goes with no target_parameters; must be a list");
  }
  // The layers of every family are called "layers".
  if (object.contains("layers_pattern") && !IsUnset(object["layers_pattern"]) && object["layers_pattern"] != "layers" &&
      object["layers_pattern"] != json::array({"layers"})) {
    violation("layers_pattern", absl::StrCat(object["layers_pattern"].dump(), " is not supported; supported: layers"));
  }
  if (!(config.dropout >= 0 && config.dropout < 1)) {
    violation("lora_dropout",
              absl::StrCat(config.dropout, " is out of range; must be from 0 up to, but not including, 1"));
  }
  if (config.rank < 1) violation("r", absl::StrCat(config.rank, " is out of range; must be 1 or more"));
  const auto check = [&](const char* field, const std::string& pattern) {
    if (absl::Status status = CheckPattern(pattern); !status.ok()) violation(field, status.message());
  };
  check("target_modules", config.target_regex.value_or(""));
  check("exclude_modules", config.exclude_regex.value_or(""));
  for (const auto& [key, rank] : config.rank_pattern) {
    check("rank_pattern", key);
    if (rank < 1) violation("rank_pattern", absl::StrCat(key, ": ", rank, " is out of range; must be 1 or more"));
  }
  for (const auto& [key, alpha] : config.alpha_pattern) check("alpha_pattern", key);
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

bool AnyAround(absl::string_view module, absl::FunctionRef<bool(absl::string_view)> holds) {
  while (!holds(module)) {
    const size_t dot = module.rfind('.');
    if (dot == absl::string_view::npos) return false;
    module = module.substr(0, dot);
  }
  return true;
}

bool AdapterConfig::Targets(absl::string_view module, int layer) const {
  // What is trained whole carries no adapter.
  if (std::any_of(modules_to_save.begin(), modules_to_save.end(),
                  [&](const std::string& name) { return HasComponents(module, name); })) {
    return false;
  }
  if (EndsWithAny(module, exclude_modules) || (exclude_regex && MatchesWhole(*exclude_regex, module))) return false;
  // As in PEFT, what is named in full, as the head is, may lie in any layer or in none.
  if (std::find(target_modules.begin(), target_modules.end(), module) != target_modules.end()) return true;
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
  return std::any_of(modules_to_save.begin(), modules_to_save.end(), [&](const std::string& name) {
    return AnyAround(module, [&](absl::string_view around) { return absl::EndsWith(around, name); });
  });
}

int64_t AdapterConfig::RankOf(absl::string_view name) const { return PatternValue(rank_pattern, name, rank); }

double AdapterConfig::ScaleOf(absl::string_view name) const {
  const double its_alpha = PatternValue(alpha_pattern, name, alpha);
  const auto r = static_cast<double>(RankOf(name));
  return rslora ? its_alpha / std::sqrt(r) : its_alpha / r;
}

absl::StatusOr<AdapterConfig> ParseAdapterConfig(const ordered_json& ordered) {
  if (!ordered.is_object()) return absl::InvalidArgumentError("adapter_config.json: is no JSON object");
  std::vector<std::string> violations;
  const auto violation = [&](absl::string_view field, absl::string_view what) {
    violations.push_back(absl::StrCat("adapter_config.json: ", field, ": ", what));
  };
  const json object = ordered;
  CheckFields(object, violation);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  AdapterConfig config = ReadFields(object, ordered, violation);
  CheckValues(config, object, violation);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return config;
}

absl::StatusOr<AdapterConfig> ReadAdapterConfig(const std::string& folder) {
  return ReadAdapterConfigFile(folder + "/" + kAdapterConfigFile);
}

absl::StatusOr<AdapterConfig> ReadAdapterConfigFile(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const ordered_json parsed,
                           ReadOrderedJsonFile(path, "give an adapter folder in PEFT format"));
  return ParseAdapterConfig(parsed);
}

namespace {

template <typename T>
ordered_json InOrder(const Patterns<T>& patterns) {
  ordered_json block = ordered_json::object();
  for (const auto& [key, value] : patterns) block[key] = value;
  return block;
}

}  // namespace

ordered_json ToJson(const AdapterConfig& config) {
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
              {"rank_pattern", json::object()},
              {"alpha_pattern", json::object()},
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
  ordered_json ordered = out;
  ordered["rank_pattern"] = InOrder(config.rank_pattern);
  ordered["alpha_pattern"] = InOrder(config.alpha_pattern);
  return ordered;
}

}  // namespace luthier
