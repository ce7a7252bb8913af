#include "lib/checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

using nlohmann::json;

// Larger than any published model; keeps products of two sizes inside int64.
constexpr int64_t kMaxSize = int64_t{1} << 30;
// Ten times the deepest published model: a table of all tensors is built from it, so it bounds memory.
constexpr int64_t kMaxLayers = 2000;

// Reads fields of one JSON object and remembers everything that is wrong with them.
class FieldReader {
 public:
  FieldReader(const json& object, std::vector<std::string>& violations) : object_(object), violations_(violations) {}

  bool Has(const char* field) const { return object_.contains(field) && !object_[field].is_null(); }

  int64_t Size(const char* field) {
    if (!Has(field)) return Violation<int64_t>(field, "is missing");
    return SizeOr(field, 0);
  }

  int64_t SizeOr(const char* field, int64_t fallback) {
    if (!Has(field)) return fallback;
    const json& value = object_[field];
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMaxSize) {
      return Violation<int64_t>(field, absl::StrCat(value.dump(), " is not a whole number from 1 to ", kMaxSize));
    }
    return value.get<int64_t>();
  }

  double PositiveOr(const char* field, double fallback) {
    if (!Has(field)) return fallback;
    const json& value = object_[field];
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      return Violation<double>(field, absl::StrCat(value.dump(), " is not a number above 0"));
    }
    return value.get<double>();
  }

  bool FlagOr(const char* field, bool fallback) {
    if (!Has(field)) return fallback;
    if (!object_[field].is_boolean()) return Violation<bool>(field, "is not true or false");
    return object_[field].get<bool>();
  }

  std::string TextOr(const char* field, std::string fallback) {
    if (!Has(field)) return fallback;
    if (!object_[field].is_string()) return Violation<std::string>(field, "is not a string");
    return object_[field].get<std::string>();
  }

  // For fields that would change the mathematics.
  void Require(const char* field, const json& supported) {
    if (Has(field) && object_[field] != supported) {
      Violation<int>(field, absl::StrCat(object_[field].dump(), " is not supported; supported: ", supported.dump()));
    }
  }

  template <typename T>
  T Violation(absl::string_view field, absl::string_view what) {
    violations_.push_back(absl::StrCat("config.json: ", field, ": ", what));
    return T{};
  }

 private:
  const json& object_;
  std::vector<std::string>& violations_;
};

RopeConfig ParseRope(const json& config, std::vector<std::string>& violations) {
  RopeConfig rope;
  FieldReader top(config, violations);
  rope.theta = top.PositiveOr("rope_theta", rope.theta);
  top.Require("partial_rotary_factor", 1.0);
  const char* block = top.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.Has(block)) return rope;
  if (!config[block].is_object()) {
    top.Violation<int>(block, "is not an object");
    return rope;
  }
  FieldReader fields(config[block], violations);
  rope.theta = fields.PositiveOr("rope_theta", rope.theta);
  fields.Require("partial_rotary_factor", 1.0);
  // `type` is what transformers wrote before 4.43.
  const std::string type = fields.TextOr("rope_type", fields.TextOr("type", "default"));
  if (type == "default") return rope;
  if (!fields.Has("factor")) fields.Violation<int>(absl::StrCat(block, ".factor"), "is missing");
  rope.factor = fields.PositiveOr("factor", 1.0);
  if (type == "linear") {
    rope.type = RopeConfig::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeConfig::Type::kLlama3;
    for (const char* field : {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
      if (!fields.Has(field)) fields.Violation<int>(absl::StrCat(block, ".", field), "is missing");
    }
    rope.low_freq_factor = fields.PositiveOr("low_freq_factor", 1.0);
    rope.high_freq_factor = fields.PositiveOr("high_freq_factor", 4.0);
    rope.original_max_position_embeddings = fields.PositiveOr("original_max_position_embeddings", 8192);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fields.Violation<int>(absl::StrCat(block, ".high_freq_factor"), "must be above low_freq_factor");
    }
  } else {
    fields.Violation<int>(absl::StrCat(block, ".rope_type"),
                          absl::StrCat("'", type, "' is not supported; supported: default, linear, llama3"));
  }
  return rope;
}

std::vector<int64_t> ParseTokenIds(const json& config, const char* field, std::vector<std::string>& violations) {
  std::vector<int64_t> ids;
  if (!config.contains(field) || config[field].is_null()) return ids;
  const json list = config[field].is_array() ? config[field] : json::array({config[field]});
  for (const json& id : list) {
    if (id.is_number_integer() && id.get<int64_t>() >= 0) {
      ids.push_back(id.get<int64_t>());
    } else {
      violations.push_back(absl::StrCat("config.json: ", field, ": ", id.dump(), " is no token id"));
    }
  }
  return ids;
}

// A head of another kind has tensors that the forward pass does not know.
void CheckArchitecture(const json& config, std::vector<std::string>& violations) {
  if (!config.contains("architectures") || !config["architectures"].is_array()) return;
  const json& names = config["architectures"];
  if (!names.empty() && std::find(names.begin(), names.end(), "LlamaForCausalLM") == names.end()) {
    violations.push_back(absl::StrCat("config.json: architectures: ", names.dump(),
                                      " is not supported; supported: LlamaForCausalLM"));
  }
}

void CheckConsistency(const ModelConfig& config, std::vector<std::string>& violations) {
  if (config.num_layers > kMaxLayers) {
    violations.push_back(absl::StrCat("config.json: num_hidden_layers: ", config.num_layers,
                                      " is out of range; must be at most ", kMaxLayers));
  }
  if (config.q_size() > kMaxSize) {
    violations.push_back(absl::StrCat("config.json: head_dim: ", config.head_dim, " times ", config.num_heads,
                                      " heads is out of range; must be at most ", kMaxSize));
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    violations.push_back(absl::StrCat("config.json: num_key_value_heads: ", config.num_kv_heads,
                                      " does not divide num_attention_heads ", config.num_heads));
  }
  if (config.head_dim % 2 != 0) {
    violations.push_back(absl::StrCat("config.json: head_dim: ", config.head_dim, " is odd; rotary embedding needs pairs"));
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("config.json: is no JSON object");
  std::vector<std::string> violations;
  FieldReader fields(json, violations);
  ModelConfig config;
  config.model_type = fields.TextOr("model_type", "");
  if (config.model_type != "llama") {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: model_type: '", config.model_type, "' is not supported; supported: llama"));
  }
  config.vocab_size = fields.Size("vocab_size");
  config.hidden_size = fields.Size("hidden_size");
  config.intermediate_size = fields.Size("intermediate_size");
  config.num_layers = fields.Size("num_hidden_layers");
  config.num_heads = fields.Size("num_attention_heads");
  config.num_kv_heads = fields.SizeOr("num_key_value_heads", config.num_heads);
  if (!fields.Has("head_dim") && config.num_heads > 0 && config.hidden_size % config.num_heads != 0) {
    fields.Violation<int>("num_attention_heads", absl::StrCat(config.num_heads, " does not divide hidden_size ",
                                                              config.hidden_size, ", and head_dim is not given"));
  }
  config.head_dim = fields.SizeOr("head_dim", config.num_heads > 0 ? config.hidden_size / config.num_heads : 0);
  config.max_position_embeddings = fields.SizeOr("max_position_embeddings", 2048);
  config.rms_norm_eps = fields.PositiveOr("rms_norm_eps", config.rms_norm_eps);
  config.tie_word_embeddings = fields.FlagOr("tie_word_embeddings", false);
  config.dtype = fields.TextOr("dtype", fields.TextOr("torch_dtype", "float32"));
  config.rope = ParseRope(json, violations);
  config.eos_token_ids = ParseTokenIds(json, "eos_token_id", violations);
  if (const auto bos = ParseTokenIds(json, "bos_token_id", violations); !bos.empty()) config.bos_token_id = bos[0];

  fields.Require("hidden_act", "silu");
  fields.Require("attention_bias", false);
  fields.Require("mlp_bias", false);
  fields.Require("attention_dropout", 0.0);
  fields.Require("pretraining_tp", 1);
  fields.Require("sliding_window", nullptr);
  fields.Require("quantization_config", nullptr);
  CheckArchitecture(json, violations);
  if (violations.empty()) CheckConsistency(config, violations);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return config;
}

absl::StatusOr<json> ReadConfigJson(const std::string& folder) {
  const std::string path = folder + "/config.json";
  std::ifstream stream(path);
  if (!stream) {
    return absl::NotFoundError(
        absl::StrCat(path, ": not found; give a model folder in Hugging Face format"));
  }
  json parsed = json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid JSON"));
  return parsed;
}

json WithDtype(json config, const std::string& dtype) {
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = dtype;
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const json parsed, ReadConfigJson(folder));
  return ParseModelConfig(parsed);
}

}  // namespace luthier
