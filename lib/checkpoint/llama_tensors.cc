#include "lib/checkpoint/llama_tensors.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace luthier {
namespace {

// A checkpoint of another model lists thousands of faults; the first ones tell.
constexpr size_t kMaxReported = 50;

}  // namespace

std::vector<LinearLayer> LlamaLinearLayers(const ModelConfig& config) {
  std::vector<LinearLayer> linears;
  const int64_t hidden = config.hidden_size;
  const int64_t mlp = config.intermediate_size;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    linears.push_back({prefix + "self_attn.q_proj", layer, hidden, config.q_size()});
    linears.push_back({prefix + "self_attn.k_proj", layer, hidden, config.kv_size()});
    linears.push_back({prefix + "self_attn.v_proj", layer, hidden, config.kv_size()});
    linears.push_back({prefix + "self_attn.o_proj", layer, config.q_size(), hidden});
    linears.push_back({prefix + "mlp.gate_proj", layer, hidden, mlp});
    linears.push_back({prefix + "mlp.up_proj", layer, hidden, mlp});
    linears.push_back({prefix + "mlp.down_proj", layer, mlp, hidden});
  }
  return linears;
}

std::map<std::string, std::vector<int64_t>> LlamaTensors(const ModelConfig& config) {
  std::map<std::string, std::vector<int64_t>> tensors;
  tensors["model.embed_tokens.weight"] = {config.vocab_size, config.hidden_size};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors[prefix + "input_layernorm.weight"] = {config.hidden_size};
    tensors[prefix + "post_attention_layernorm.weight"] = {config.hidden_size};
  }
  for (const LinearLayer& linear : LlamaLinearLayers(config)) {
    tensors[linear.module + ".weight"] = {linear.out, linear.in};
  }
  tensors["model.norm.weight"] = {config.hidden_size};
  if (!config.tie_word_embeddings) tensors["lm_head.weight"] = {config.vocab_size, config.hidden_size};
  return tensors;
}

absl::Status CheckLlamaTensors(const ModelConfig& config, const std::map<std::string, TensorView>& stored) {
  const auto expected = LlamaTensors(config);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      faults.push_back(absl::StrCat("missing: ", name, " ", ShapeString(shape)));
    } else if (found->second.shape != shape) {
      faults.push_back(absl::StrCat("wrong shape: ", name, " is ", ShapeString(found->second.shape), ", config.json says ",
                                    ShapeString(shape)));
    } else if (found->second.dtype != Dtype::kF32 && found->second.dtype != Dtype::kBf16 &&
               found->second.dtype != Dtype::kF16) {
      faults.push_back(absl::StrCat("wrong dtype: ", name, " is ", DtypeName(found->second.dtype), "; supported: F32, BF16, F16"));
    }
  }
  for (const auto& [name, view] : stored) {
    const bool harmless = absl::EndsWith(name, "rotary_emb.inv_freq") ||
                          (config.tie_word_embeddings && name == "lm_head.weight");
    if (!expected.contains(name) && !harmless) faults.push_back(absl::StrCat("unexpected: ", name));
  }
  if (faults.empty()) return absl::OkStatus();
  const size_t total = faults.size();
  if (total > kMaxReported) {
    faults.resize(kMaxReported);
    faults.push_back(absl::StrCat("… and ", total - kMaxReported, " more"));
  }
  return absl::InvalidArgumentError(absl::StrCat("the weights do not fit config.json:\n  ", absl::StrJoin(faults, "\n  ")));
}

}  // namespace luthier
