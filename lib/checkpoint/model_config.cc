#include "lib/checkpoint/model_config.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/field_reader.h"

namespace luthier {
namespace {

using nlohmann::json;

// Fields that change the mathematics in some family, with the value that leaves it as it is. A family that does not
// read one of them does not implement it, so another value there is refused. transformers ignores such a field; whoever
// wrote it meant it.
const std::vector<std::pair<const char*, json>>& FieldsThatMatter() {
  static const std::vector<std::pair<const char*, json>> fields = {
      {"alibi", false},
      {"attention_bias", false},
      {"attention_multiplier", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"clip_qkv", nullptr},
      {"embd_pdrop", 0.0},
      {"embedding_multiplier", 1.0},
      {"final_logit_softcapping", nullptr},
      {"hidden_activation", nullptr},
      {"lm_head_bias", false},
      {"logit_scale", nullptr},
      {"logits_scaling", 1.0},
      {"mlp_bias", false},
      {"mlp_only_layers", json::array()},
      {"no_rope_layers", nullptr},
      {"num_experts", nullptr},
      {"num_local_experts", nullptr},
      {"output_router_logits", false},
      {"partial_rotary_factor", 1.0},
      {"qk_layernorm", false},
      {"qkv_bias", false},
      {"quantization_config", nullptr},
      {"query_pre_attn_scalar", nullptr},
      {"resid_pdrop", 0.0},
      {"residual_multiplier", 1.0},
      {"rope_interleaved", false},
      {"rope_local_base_freq", nullptr},
      {"rotary_pct", 1.0},
      {"sliding_window", nullptr},
      {"use_bias", false},
      {"use_bidirectional_attention", false},
      {"use_mrope", false},
      {"use_qk_norm", false},
      {"use_sliding_window", false},
  };
  return fields;
}

// The families that call their gate's activation `hidden_activation` have files with a `hidden_act` that nobody reads,
// and nobody reads a list of layer types that are all the same.
void RefuseUnreadFields(FieldReader& fields, const ModelConfig& config) {
  for (const auto& [name, neutral] : FieldsThatMatter()) {
    if (!fields.Unread(name)) continue;
    const json& value = fields.Raw(name);
    if (value.is_null() || value == neutral) continue;
    fields.Violation(name, absl::StrCat(value.dump(), " is not supported for model_type ", config.model_type));
  }
  if (fields.Unread("layer_types")) {
    for (const std::string& type : fields.TextList("layer_types")) {
      if (type != "full_attention") {
        fields.Violation("layer_types",
                         absl::StrCat("'", type, "' is not supported for model_type ", config.model_type));
        break;
      }
    }
  }
}

// A head of another kind has tensors that the forward pass does not know.
void CheckArchitecture(FieldReader& fields, const Family& family) {
  const json& names = fields.Raw("architectures");
  if (!names.is_array() || names.empty()) return;
  if (std::find(names.begin(), names.end(), family.architecture) == names.end()) {
    fields.Violation("architectures",
                     absl::StrCat(names.dump(), " is not supported; supported: ", family.architecture));
  }
}

std::string UnknownFamily(const std::string& model_type) {
  const std::string supported = absl::StrCat("supported: ", absl::StrJoin(FamilyNames(), ", "));
  if (model_type == "gemma3") {
    return absl::StrCat(
        "config.json: model_type: 'gemma3' also sees images, which is not supported; give a text-only "
        "checkpoint (gemma3_text); ",
        supported);
  }
  return absl::StrCat("config.json: model_type: '", model_type, "' is not supported; ", supported);
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("config.json: is no JSON object");
  std::vector<std::string> violations;
  FieldReader fields(json, "config.json: ", violations);
  ModelConfig config;
  config.model_type = fields.TextOr("model_type", "");
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) return absl::InvalidArgumentError(UnknownFamily(config.model_type));
  family->read(fields, config);
  RefuseUnreadFields(fields, config);
  CheckArchitecture(fields, *family);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return config;
}

absl::StatusOr<json> ReadConfigJson(const std::string& folder) {
  const std::string path = folder + "/config.json";
  std::ifstream stream(path);
  if (!stream) {
    return absl::NotFoundError(absl::StrCat(path, ": not found; give a model folder in Hugging Face format"));
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
