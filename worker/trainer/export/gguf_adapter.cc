#include "worker/trainer/export/gguf_adapter.h"

#include <algorithm>
#include <map>
#include <span>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/gguf.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/export/export_place.h"

namespace luthier {
namespace {

constexpr char kAlphaKey[] = "adapter.lora.alpha";

// llama.cpp's names of the linear layers of a block. Phi-3's gate and up lie together in what others call up.
const std::map<std::string, std::string>& BlockNames() {
  static const std::map<std::string, std::string> names = {
      {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},     {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"self_attn.qkv_proj", "attn_qkv"}, {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"},      {"mlp.gate_up_proj", "ffn_up"}};
  return names;
}

std::string GgufName(const LinearLayer& linear) {
  if (IsEmbedding(linear)) return "token_embd.weight";
  if (linear.layer < 0) return "output.weight";
  const std::string prefix = absl::StrCat("model.layers.", linear.layer, ".");
  return absl::StrCat("blk.", linear.layer, ".", BlockNames().at(linear.module.substr(prefix.size())), ".weight");
}

// From A to what the file holds, and back: llama.cpp looks tokens up in rows of what belongs to the embedding.
Tensor Turned(const LinearLayer& linear, const Tensor& a) { return IsEmbedding(linear) ? a.t() : a; }

// Heads whose rows llama.cpp reorders in the weight of this layer; 0: none.
int64_t PermutedHeads(const LinearLayer& linear, const ModelConfig& config) {
  if (!FindFamily(config.model_type)->gguf_permutes_heads) return 0;
  if (linear.module.ends_with("self_attn.q_proj")) return config.num_heads;
  return linear.module.ends_with("self_attn.k_proj") ? config.num_kv_heads : 0;
}

// Row i + half of a head moves behind row i: [halves, pairs] → [pairs, halves] inside each head.
Tensor Interleave(const Tensor& b_OR, int64_t heads) {
  return b_OR.view({heads, 2, -1, b_OR.size(1)}).transpose(1, 2).reshape(b_OR.sizes());
}

Tensor Deinterleave(const Tensor& b_OR, int64_t heads) {
  return b_OR.view({heads, -1, 2, b_OR.size(1)}).transpose(1, 2).reshape(b_OR.sizes());
}

GgufTensor ToGguf(const Tensor& tensor) {
  const Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  return {values.sizes().vec(), std::vector<float>(data, data + values.numel())};
}

Tensor ToTensor(const GgufTensor& tensor) {
  return at::tensor(at::ArrayRef<float>(tensor.values), at::kFloat).view(tensor.shape);
}

absl::Status CheckRepresentable(const Adapter& adapter, const ModelConfig& config) {
  const auto refuse = [](const char* field, const char* why) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": a GGUF adapter cannot hold ", why, "; export the merged model instead"));
  };
  if (adapter.config.dora) return refuse("use_dora", "magnitudes");
  if (!adapter.config.modules_to_save.empty()) return refuse("modules_to_save", "whole modules");
  // llama.cpp finds what belongs to a weight by its name, which tied matrices share.
  for (const LinearLayer& layer : {HeadLayer(config), EmbeddingLayer(config)}) {
    if (!config.tie_word_embeddings || !adapter.tensors.contains(LoraName(layer, "A"))) continue;
    return refuse("target_modules", IsEmbedding(layer) ? "an adapter on an embedding that is tied to the head"
                                                       : "an adapter on a head that is tied to the embedding");
  }
  return absl::OkStatus();
}

GgufFile ToGgufFile(const Adapter& adapter, const ModelConfig& config) {
  GgufFile file;
  file.metadata = {{"general.type", std::string("adapter")},
                   {"general.architecture", FindFamily(config.model_type)->gguf_architecture},
                   {"general.name", adapter.config.base_model_name},
                   {absl::StrCat("general.", kProducerKey), std::string(kProducer)},
                   {"adapter.type", std::string("lora")},
                   {kAlphaKey, static_cast<float>(adapter.config.alpha)}};
  for (const LinearLayer& linear : AdaptableLayers(config)) {
    const auto a = adapter.tensors.find(LoraName(linear, "A"));
    if (a == adapter.tensors.end()) continue;
    const auto rank = static_cast<double>(a->second.size(0));
    // 1 exactly where the scale is alpha / rank already.
    const double folded = adapter.config.ScaleOf(linear.module) * rank / adapter.config.alpha;
    Tensor b_OR = adapter.tensors.at(LoraName(linear, "B")) * folded;
    if (const int64_t heads = PermutedHeads(linear, config); heads > 0) b_OR = Interleave(b_OR, heads);
    file.tensors[GgufName(linear) + ".lora_a"] = ToGguf(Turned(linear, a->second));
    file.tensors[GgufName(linear) + ".lora_b"] = ToGguf(b_OR);
  }
  return file;
}

// Whether `written`, the file at `path`, holds the tensors of `file`, bit for bit.
absl::Status CompareTensors(const GgufFile& file, const GgufFile& written, const std::string& path) {
  for (const auto& [name, tensor] : file.tensors) {
    const auto found = written.tensors.find(name);
    if (found == written.tensors.end() || found->second.shape != tensor.shape ||
        !std::ranges::equal(std::as_bytes(std::span(found->second.values)), std::as_bytes(std::span(tensor.values)))) {
      return absl::InternalError(absl::StrCat(path, ": ", name, " is not as it was written; it is not published"));
    }
  }
  return absl::OkStatus();
}

// `path` is for messages.
absl::StatusOr<Adapter> AdapterOf(const GgufFile& file, const ModelConfig& config, const std::string& path) {
  const auto text = [&](const char* key) {
    const auto found = file.metadata.find(key);
    const auto* value = found == file.metadata.end() ? nullptr : std::get_if<std::string>(&found->second);
    return value == nullptr ? std::string() : *value;
  };
  const std::string& architecture = FindFamily(config.model_type)->gguf_architecture;
  const auto alpha = file.metadata.find(kAlphaKey);
  if (text("general.type") != "adapter" || text("adapter.type") != "lora" ||
      text("general.architecture") != architecture || alpha == file.metadata.end() ||
      !std::holds_alternative<float>(alpha->second)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is no LoRA adapter of architecture ", architecture));
  }
  Adapter adapter;
  adapter.config.alpha = std::get<float>(alpha->second);
  adapter.config.base_model_name = text("general.name");
  size_t used = 0;
  for (const LinearLayer& linear : AdaptableLayers(config)) {
    const auto a = file.tensors.find(GgufName(linear) + ".lora_a"), b = file.tensors.find(GgufName(linear) + ".lora_b");
    if (a == file.tensors.end() || b == file.tensors.end()) continue;
    const int64_t rank = b->second.shape.size() < 2 ? 0 : b->second.shape[1];
    std::vector<int64_t> shape_of_a = {rank, linear.in};
    if (IsEmbedding(linear)) std::reverse(shape_of_a.begin(), shape_of_a.end());
    if (a->second.shape != shape_of_a || b->second.shape != std::vector<int64_t>{linear.out, rank}) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", GgufName(linear), " does not fit this base model"));
    }
    Tensor b_OR = ToTensor(b->second);
    if (const int64_t heads = PermutedHeads(linear, config); heads > 0) b_OR = Deinterleave(b_OR, heads);
    adapter.tensors[LoraName(linear, "A")] = Turned(linear, ToTensor(a->second)).contiguous();
    adapter.tensors[LoraName(linear, "B")] = b_OR;
    adapter.config.target_modules.push_back(linear.module);
    if (used == 0) adapter.config.rank = rank;
    if (rank != adapter.config.rank) adapter.config.rank_pattern[linear.module] = rank;
    used += 2;
  }
  if (used != file.tensors.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds ", file.tensors.size() - used, " tensors that no layer of this base takes"));
  }
  return adapter;
}

}  // namespace

absl::StatusOr<Adapter> ReadGgufAdapter(const std::string& path, const ModelConfig& config) {
  LUTHIER_ASSIGN_OR_RETURN(const GgufFile file, ReadGguf(path));
  return AdapterOf(file, config, path);
}

absl::Status ExportGgufAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                               const TrainedModel& trained, const std::string& path) {
  LUTHIER_RETURN_IF_ERROR(CheckRepresentable(adapter, config));
  return WriteExport(path, [&](const std::string& unfinished) -> absl::Status {
    const GgufFile file = ToGgufFile(adapter, config);
    LUTHIER_RETURN_IF_ERROR(WriteGguf(unfinished, file));
    LUTHIER_ASSIGN_OR_RETURN(const GgufFile written, ReadGguf(unfinished));
    LUTHIER_RETURN_IF_ERROR(CompareTensors(file, written, unfinished));
    LUTHIER_ASSIGN_OR_RETURN(const Adapter again, AdapterOf(written, config, unfinished));
    LUTHIER_ASSIGN_OR_RETURN(const auto reloaded, MakeTunedModel(config, base, {&again}));
    return trained.Compare(*reloaded, kExactTolerance, path);
  });
}

}  // namespace luthier
