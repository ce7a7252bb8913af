// adapter_config.json of a LoRA adapter in PEFT format.
// Source: github.com/huggingface/peft tuners/lora/config.py and tuners_utils.py (matching of names and patterns).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Values for layers whose names match a regular expression. Of several that match, the first counts.
template <typename T>
using Patterns = std::vector<std::pair<std::string, T>>;

// Which layers carry an adapter, of which rank and scale.
struct AdapterConfig {
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  bool rslora = false;
  bool dora = false;
  // `all-linear`, a list of names (equal to, or the end of, a module's name), or one regular expression.
  std::vector<std::string> target_modules;
  std::optional<std::string> target_regex;
  bool all_linear = false;
  // Layers that get none although they are targeted, in the same two forms.
  std::vector<std::string> exclude_modules;
  std::optional<std::string> exclude_regex;
  Patterns<int64_t> rank_pattern;
  Patterns<double> alpha_pattern;
  // The same for weights that are no modules, such as those of experts: names or ends of names. What is excluded and
  // `layers_to_transform` do not act on them, and neither DoRA nor dropout goes with them.
  std::vector<std::string> target_parameters;
  std::vector<int> layers_to_transform;  // empty: all
  // Trained whole and stored whole, with all that they hold: names, or ends of names, of modules.
  std::vector<std::string> modules_to_save;
  std::string base_model_name;

  // Whether the linear layer `module` ("model.layers.0.mlp.up_proj"), which lies in `layer` (-1: head and embedding),
  // gets an adapter.
  bool Targets(absl::string_view module, int layer) const;
  // Whether the weight `parameter` ("model.layers.0.mlp.experts.down_proj") gets one.
  bool TargetsParameter(absl::string_view parameter) const;
  // Whether the module, or one around it, is trained whole.
  bool Saves(absl::string_view module) const;
  // By LinearLayer::name().
  int64_t RankOf(absl::string_view name) const;
  // alpha / r, or alpha / sqrt(r) with rsLoRA, after both patterns.
  double ScaleOf(absl::string_view name) const;
};

// Whether something holds of the module's name or of that of one around it: "model.layers.0.mlp.up_proj",
// "model.layers.0.mlp", …
bool AnyAround(absl::string_view module, absl::FunctionRef<bool(absl::string_view)> holds);

// Reads the fields that matter and refuses by name what changes the mathematics and is not implemented (bias, …).
// Ordered, because patterns are.
absl::StatusOr<AdapterConfig> ParseAdapterConfig(const nlohmann::ordered_json& json);

// The two files of an adapter's folder.
inline constexpr const char* kAdapterConfigFile = "adapter_config.json";
inline constexpr const char* kAdapterWeightsFile = "adapter_model.safetensors";

absl::StatusOr<AdapterConfig> ReadAdapterConfig(const std::string& folder);
absl::StatusOr<AdapterConfig> ReadAdapterConfigFile(const std::string& path);

// The conservative set of fields that PEFT, vLLM and llama.cpp's converter read. Keys are sorted, but those of patterns
// are in their order.
nlohmann::ordered_json ToJson(const AdapterConfig& config);

}  // namespace luthier
