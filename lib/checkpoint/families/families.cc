#include "lib/checkpoint/families/families.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// The list of families.
const std::vector<Family>& Families() {
  static const std::vector<Family> families = {
      Gemma2Family(), Gemma3Family(), GraniteFamily(), LlamaFamily(),    MistralFamily(), Olmo2Family(),
      Phi3Family(),   Qwen2Family(),  Qwen3Family(),   Qwen3MoeFamily(), SmolLm3Family(),
  };
  return families;
}

// Ten times the deepest published model: a table of all tensors is built from it, so it bounds memory.
constexpr int64_t kMaxLayers = 2000;

// Exports write such a field on; what begins and ends a text is the tokenizer's.
void CheckTokenIds(FieldReader& fields, const char* field) {
  const nlohmann::json& value = fields.Raw(field);
  if (value.is_null()) return;
  for (const nlohmann::json& id : value.is_array() ? value : nlohmann::json::array({value})) {
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() > kMost) {
      fields.Violation(field, absl::StrCat(id.dump(), " is no token id; give a whole number from 0 to ", kMost));
    }
  }
}

// The embedding is built with it, and cannot be for a token beyond the vocabulary; one below 0 counts from the end. A
// field that is left out means what the family's class has, null none.
void ReadPaddingToken(FieldReader& fields, ModelConfig& config) {
  const char* field = "pad_token_id";
  const bool given = fields.object().contains(field);
  const nlohmann::json value = given                  ? fields.Raw(field)
                               : config.padding_token ? nlohmann::json(*config.padding_token)
                                                      : nlohmann::json();
  config.padding_token.reset();
  if (value.is_null()) return;
  const double size = static_cast<double>(config.vocab_size);
  if (!value.is_number_integer() || value.get<double>() < -size || value.get<double>() >= size) {
    fields.Violation(field, absl::StrCat(given ? "" : "is missing, which means ", value.dump(), given ? " is" : ",",
                                         " no token of the ", config.vocab_size,
                                         " of vocab_size; give one of them, or null if no token is for padding only"));
    return;
  }
  const auto token = value.get<int64_t>();
  config.padding_token = token < 0 ? token + config.vocab_size : token;
}

// Exports are written in this format, and config.json goes with them: transformers would read them in another one.
void ReadDtype(FieldReader& fields, ModelConfig& config) {
  const char* field = fields.Has("dtype") ? "dtype" : "torch_dtype";
  fields.Has("torch_dtype");  // read, where both are there
  config.dtype = fields.TextOr(field, "float32");
  if (config.dtype != "float32" && config.dtype != "bfloat16" && config.dtype != "float16") {
    fields.Violation(field,
                     absl::StrCat("'", config.dtype, "' is not supported; supported: float32, bfloat16, float16"));
  }
}

void ReadHeads(FieldReader& fields, ModelConfig& config) {
  config.num_heads = fields.Size("num_attention_heads");
  const int64_t if_absent = config.num_kv_heads > 0 ? config.num_kv_heads : config.num_heads;
  config.num_kv_heads = fields.NullableSize("num_key_value_heads", if_absent).value_or(config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.Violation("num_key_value_heads",
                     absl::StrCat(fields.Has("num_key_value_heads") ? "" : "is missing, which means ",
                                  config.num_kv_heads, fields.Has("num_key_value_heads") ? "" : ", which",
                                  " does not divide num_attention_heads ", config.num_heads));
  }
  if (config.head_dim == 0 && !fields.Has("head_dim") && config.hidden_size % config.num_heads != 0) {
    fields.Violation("num_attention_heads", absl::StrCat(config.num_heads, " does not divide hidden_size ",
                                                         config.hidden_size, ", and head_dim is not given"));
  }
  const int64_t fallback =
      config.head_dim > 0 ? config.head_dim : std::max<int64_t>(1, config.hidden_size / config.num_heads);
  config.head_dim = fields.SizeOr("head_dim", fallback);
  if (config.head_dim % 2 != 0) {
    fields.Violation("head_dim", absl::StrCat(config.head_dim, " is odd; rotary embedding needs pairs"));
  }
  constexpr int64_t kMaxProjection = int64_t{1} << 30;
  if (config.q_size() > kMaxProjection) {
    fields.Violation("head_dim", absl::StrCat(config.head_dim, " times ", config.num_heads,
                                              " heads is out of range; must be at most ", kMaxProjection));
  }
  config.attention_scale = 1 / std::sqrt(static_cast<double>(config.head_dim));
}

}  // namespace

const Family* FindFamily(const std::string& model_type) {
  for (const Family& family : Families()) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

std::vector<std::string> FamilyNames() {
  std::vector<std::string> names;
  for (const Family& family : Families()) names.push_back(family.model_type);
  return names;
}

void ReadDecoder(FieldReader& fields, ModelConfig& config) {
  config.vocab_size = fields.Size("vocab_size");
  config.hidden_size = fields.Size("hidden_size");
  config.intermediate_size = fields.Size("intermediate_size");
  config.num_layers = fields.Size("num_hidden_layers");
  if (config.num_layers > kMaxLayers) {
    fields.Violation("num_hidden_layers",
                     absl::StrCat(config.num_layers, " is out of range; must be at most ", kMaxLayers));
    config.num_layers = 1;
  }
  ReadHeads(fields, config);
  constexpr int64_t kDefaultContext = 2048;
  config.max_position_embeddings = fields.SizeOr(
      "max_position_embeddings", config.max_position_embeddings > 0 ? config.max_position_embeddings : kDefaultContext);
  config.rms_norm_eps = fields.PositiveOr("rms_norm_eps", config.rms_norm_eps);
  config.tie_word_embeddings = fields.FlagOr("tie_word_embeddings", config.tie_word_embeddings);
  config.attention_dropout = fields.FractionOr("attention_dropout", 0);
  ReadDtype(fields, config);
  CheckTokenIds(fields, "eos_token_id");
  CheckTokenIds(fields, "bos_token_id");
  ReadPaddingToken(fields, config);
  config.layers.resize(static_cast<size_t>(config.num_layers));
}

void ReadActivation(FieldReader& fields, ModelConfig& config, const char* field, const std::string& fallback) {
  config.activation = fields.TextOr(field, fallback);
  if (config.activation != "silu" && config.activation != "gelu_pytorch_tanh") {
    fields.Violation(field,
                     absl::StrCat("'", config.activation, "' is not supported; supported: silu, gelu_pytorch_tanh"));
  }
}

void ReadSlidingLayers(FieldReader& fields, ModelConfig& config, std::optional<int64_t> window,
                       const std::function<bool(int64_t layer)>& slides) {
  std::vector<std::string> types = fields.TextList("layer_types");
  if (types.empty()) {
    for (int64_t layer = 0; layer < config.num_layers; ++layer)
      types.push_back(slides(layer) ? "sliding_attention" : "full_attention");
  }
  if (types.size() != config.layers.size()) {
    fields.Violation("layer_types",
                     absl::StrCat("has ", types.size(), " entries for ", config.layers.size(), " layers"));
    return;
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] == "full_attention") continue;
    if (types[layer] != "sliding_attention") {
      fields.Violation("layer_types", absl::StrCat("'", types[layer],
                                                   "' is not supported; supported: full_attention, sliding_attention"));
    } else if (!window) {
      const char* const what =
          fields.Has("sliding_window") ? "does not count without use_sliding_window" : "is missing";
      fields.Violation("sliding_window", absl::StrCat(what, ", and layer ", layer, " is of type sliding_attention"));
      return;
    }
    config.layers[layer].window = window;
  }
}

void ReadQwenWindows(FieldReader& fields, ModelConfig& config) {
  constexpr int64_t kDefaultWindow = 4096, kDefaultFirst = 28;
  std::optional<int64_t> window = fields.NullableSize("sliding_window", kDefaultWindow);
  if (!fields.FlagOr("use_sliding_window", false)) window.reset();
  // 0 is a layer number, not a size.
  const nlohmann::json& first = fields.Raw("max_window_layers");
  const bool given = first.is_number_integer() && first.get<int64_t>() >= 0;
  if (!first.is_null() && !given)
    fields.Violation("max_window_layers", absl::StrCat(first.dump(), " is not a whole number from 0"));
  const int64_t first_sliding = given ? first.get<int64_t>() : kDefaultFirst;
  ReadSlidingLayers(fields, config, window, [&](int64_t layer) { return window && layer >= first_sliding; });
}

void ReadGemmaDecoder(FieldReader& fields, ModelConfig& config) {
  config.num_kv_heads = 4;
  config.head_dim = 256;
  config.tie_word_embeddings = true;
  config.padding_token = 0;
  config.norm_offset = 1;
  ReadDecoder(fields, config);
  ReadActivation(fields, config, "hidden_activation", "gelu_pytorch_tanh");
  config.attention_bias = fields.FlagOr("attention_bias", false);
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.attention_scale = 1 / std::sqrt(fields.PositiveOr("query_pre_attn_scalar", 256));
}

void AddLlamaLayer(const ModelConfig& config, int, LayerRows& rows) {
  rows.Norms({"input_layernorm", "post_attention_layernorm"}, config.hidden_size);
  rows.Attention(config.attention_bias, config.attention_bias);
  rows.GatedMlp(config.mlp_bias);
}

}  // namespace luthier
