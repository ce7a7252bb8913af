#include "lib/checkpoint/model_config.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/field_reader.h"
#include "lib/checkpoint/json_file.h"

namespace luthier {
namespace {

using nlohmann::json;

// Fields that no forward pass of any family depends on: what describes the file, the tokenizer, generation, training
// from scratch, or how a program computes. Everything else that a family does not read might change the mathematics,
// and whoever wrote it meant it, although transformers ignores it.
const std::set<std::string>& HarmlessFields() {
  static const std::set<std::string> fields = {
      // The file, and the programs that wrote it.
      "_commit_hash",
      "_from_model_config",
      "_name_or_path",
      "auto_map",
      "is_llama_config",
      "model_name",
      "name_or_path",
      "transformers.js_config",
      "transformers_version",
      "unsloth_fixed",
      "unsloth_version",
      // How it is computed.
      "_attn_implementation",
      "_attn_implementation_autoset",
      "_attn_implementation_internal",
      "_experts_implementation",
      "_flash_attn_2_enabled",
      "attn_implementation",
      "cache_implementation",
      "chunk_size_feed_forward",
      "gradient_checkpointing",
      "low_cpu_mem_usage",
      "pretraining_tp",
      "tp_plan",
      "use_bfloat16",
      "use_cache",
      "use_flash_attn",
      "use_flash_attention",
      "use_flash_attention_2",
      // What it returns.
      "output_attentions",
      "output_hidden_states",
      "return_dict",
      "torchscript",
      // Weights before pre-training.
      "initializer_range",
      "init_std",
      // Tokens that the tokenizer puts in.
      "decoder_start_token_id",
      "mask_token_id",
      "max_sequence_length",
      "model_max_length",
      "prefix",
      "sep_token_id",
      "tokenizer_class",
      "tokenizer_model_max_length",
      "tokenizer_padding_side",
      "unk_token_id",
      // Generation.
      "bad_words_ids",
      "begin_suppress_tokens",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "length_penalty",
      "max_length",
      "max_new_tokens",
      "min_length",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_return_sequences",
      "output_scores",
      "remove_invalid_values",
      "repetition_penalty",
      "return_dict_in_generate",
      "suppress_tokens",
      "temperature",
      "top_k",
      "top_p",
      "typical_p",
      // Heads that are not loaded.
      "finetuning_task",
      "id2label",
      "label2id",
      "num_labels",
      "problem_type",
      "task_specific_params",
  };
  return fields;
}

// Fields that change the mathematics in some family, and the value besides null, false and empty lists that leaves it
// as it is.
const std::map<std::string, json>& NeutralValues() {
  static const std::map<std::string, json> values = {
      {"attn_pdrop", 0},           {"embd_pdrop", 0},
      {"embedding_multiplier", 1}, {"full_attn_mod", 1},
      {"hidden_dropout", 0},       {"hidden_dropout_prob", 0},
      {"interpolate_factor", 1},   {"logit_scale", 1},
      {"logits_scaling", 1},       {"partial_rotary_factor", 1},
      {"resid_pdrop", 0},          {"residual_multiplier", 1},
      {"rotary_pct", 1},           {"shared_expert_intermediate_size", 0},
  };
  return values;
}

bool IsNeutral(const std::string& field, const json& value) {
  if (value.is_null() || value == false || (value.is_structured() && value.empty())) return true;
  const auto neutral = NeutralValues().find(field);
  return neutral != NeutralValues().end() && value == neutral->second;
}

// A list of layers that are all alike is no window and no chunk.
bool IsFullAttention(const json& types) {
  return types.is_array() &&
         std::all_of(types.begin(), types.end(), [](const json& type) { return type == "full_attention"; });
}

void RefuseUnreadFields(FieldReader& fields, const Family& family) {
  for (const auto& [field, value] : fields.object().items()) {
    if (!fields.Unread(field) || HarmlessFields().contains(field) || family.harmless_fields.contains(field)) continue;
    if (IsNeutral(field, value) || (field == "layer_types" && IsFullAttention(value))) continue;
    constexpr size_t kShown = 80;
    std::string shown = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (shown.size() > kShown) shown = shown.substr(0, kShown) + "…";
    fields.Violation(field,
                     absl::StrCat(shown, " is not supported for model_type ", family.model_type,
                                  "; remove the field from config.json if the model computes the same without it"));
  }
}

// In every family transformers lets tokens see those after them unless the field is absent or true: null, too, says no.
void RequireCausal(FieldReader& fields) {
  const auto causal = fields.object().find("is_causal");
  fields.Raw("is_causal");  // read
  if (causal == fields.object().end() || *causal == true) return;
  fields.Violation("is_causal", absl::StrCat(causal->dump(),
                                             " lets tokens see those after them, which is not supported; set it to "
                                             "true if the model was trained to predict the next token"));
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
  RequireCausal(fields);
  CheckArchitecture(fields, *family);
  RefuseUnreadFields(fields, *family);
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return config;
}

absl::StatusOr<json> ReadConfigJson(const std::string& folder) {
  return ReadJsonFile(folder + "/" + kConfigFile, "give a model folder in Hugging Face format");
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const json parsed, ReadConfigJson(folder));
  return ParseModelConfig(parsed);
}

}  // namespace luthier
