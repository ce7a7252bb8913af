#include "worker/trainer/export/gguf_adapter.h"

#include <algorithm>
#include <map>
#include <span>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/families/families.h"
#include "lib/checkpoint/gguf.h"
#include "lib/checkpoint/gguf_adapter.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/export/export_place.h"
#include "worker/trainer/models/common/experts.h"

namespace luthier {
namespace {

constexpr char kAlphaKey[] = "adapter.lora.alpha";

// llama.cpp's names of the linear layers of a block. Phi-3's gate and up lie together in what others call up; the
// experts' are two.
const std::map<std::string, std::vector<std::string>>& BlockNames() {
  static const std::map<std::string, std::vector<std::string>> names = {
      {"self_attn.q_proj", {"attn_q"}},
      {"self_attn.k_proj", {"attn_k"}},
      {"self_attn.v_proj", {"attn_v"}},
      {"self_attn.o_proj", {"attn_output"}},
      {"self_attn.qkv_proj", {"attn_qkv"}},
      {"mlp.gate_proj", {"ffn_gate"}},
      {"mlp.up_proj", {"ffn_up"}},
      {"mlp.down_proj", {"ffn_down"}},
      {"mlp.gate_up_proj", {"ffn_up"}},
      {"mlp.gate", {"ffn_gate_inp"}},
      {"mlp.experts.gate_up_proj", {"ffn_gate_exps", "ffn_up_exps"}},
      {"mlp.experts.down_proj", {"ffn_down_exps"}}};
  return names;
}

// Of a layer's weight, or of the equal parts of its rows.
std::vector<std::string> GgufNames(const LinearLayer& linear) {
  if (IsEmbedding(linear)) return {"token_embd.weight"};
  if (linear.layer < 0) return {"output.weight"};
  const std::string prefix = absl::StrCat("model.layers.", linear.layer, ".");
  std::vector<std::string> names = BlockNames().at(linear.module.substr(prefix.size()));
  for (std::string& name : names) name = absl::StrCat("blk.", linear.layer, ".", name, ".weight");
  return names;
}

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

// A and B as the file has them: llama.cpp looks tokens up in rows of what belongs to the embedding, and has what
// belongs to experts as a stack.
Tensor OutgoingA(const LinearLayer& linear, const Tensor& a_RI) {
  if (linear.experts > 0) return StackedA(a_RI, linear.experts);
  return IsEmbedding(linear) ? a_RI.t() : a_RI;
}

Tensor OutgoingB(const LinearLayer& linear, const Tensor& b_OR, const ModelConfig& config) {
  if (linear.experts > 0) return StackedB(b_OR, linear.experts);
  const int64_t heads = PermutedHeads(linear, config);
  return heads > 0 ? Interleave(b_OR, heads) : b_OR;
}

// And back.
Tensor IncomingA(const LinearLayer& linear, const Tensor& a) {
  if (linear.experts > 0) return a.flatten(0, 1);
  return IsEmbedding(linear) ? a.t().contiguous() : a;
}

Tensor IncomingB(const LinearLayer& linear, const Tensor& b, const ModelConfig& config) {
  if (linear.experts > 0) return UnstackedB(b);
  const int64_t heads = PermutedHeads(linear, config);
  return heads > 0 ? Deinterleave(b, heads) : b;
}

GgufTensor ToGguf(const Tensor& tensor) {
  const Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  return {values.sizes().vec(), std::vector<float>(data, data + values.numel())};
}

Tensor ToTensor(const GgufTensor& tensor) {
  return at::tensor(at::ArrayRef<float>(tensor.values), at::kFloat).view(tensor.shape);
}

GgufFile ToGgufFile(const Adapter& adapter, const ModelConfig& config) {
  GgufFile file;
  file.metadata = {{"general.type", std::string("adapter")},
                   {"general.architecture", FindFamily(config.model_type)->gguf_architecture},
                   {"general.name", adapter.config.base_model_name},
                   {absl::StrCat("general.", kProducerKey), std::string(kProducer)},
                   {"adapter.type", std::string("lora")},
                   {kAlphaKey, static_cast<float>(adapter.config.alpha)}};
  for (const LinearLayer& linear : TargetedLayers(adapter.config, config)) {
    const auto rank = static_cast<double>(adapter.config.RankOf(linear.name()));
    // 1 exactly where the scale is alpha / rank already.
    const double folded = adapter.config.ScaleOf(linear.name()) * rank / adapter.config.alpha;
    const GgufTensor a = ToGguf(OutgoingA(linear, adapter.tensors.at(LoraName(adapter.config, linear, "A"))));
    const Tensor b = OutgoingB(linear, adapter.tensors.at(LoraName(adapter.config, linear, "B")) * folded, config);
    const std::vector<std::string> names = GgufNames(linear);
    const std::vector<Tensor> parts = b.chunk(static_cast<int64_t>(names.size()), /*dim=*/-2);
    for (size_t i = 0; i < names.size(); ++i) {
      file.tensors[names[i] + ".lora_a"] = a;
      file.tensors[names[i] + ".lora_b"] = ToGguf(parts[i]);
    }
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

// Whether the file has A and B of all that the layer is there.
bool Holds(const GgufFile& file, const LinearLayer& linear) {
  const std::vector<std::string> names = GgufNames(linear);
  return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return file.tensors.contains(name + ".lora_a") && file.tensors.contains(name + ".lora_b");
  });
}

// Puts what the file has of a layer into the adapter, whose config targets it. `path` is for messages.
absl::Status TakeLayer(const GgufFile& file, const LinearLayer& linear, const ModelConfig& config,
                       const std::string& path, Adapter& adapter) {
  const std::vector<std::string> names = GgufNames(linear);
  const GgufTensor& a = file.tensors.at(names[0] + ".lora_a");
  const std::vector<int64_t>& first_b = file.tensors.at(names[0] + ".lora_b").shape;
  const int64_t rank = first_b.empty() ? 0 : first_b.back();
  std::vector<int64_t> shape_of_a = {rank, linear.in},
                       shape_of_b = {linear.out / static_cast<int64_t>(names.size()), rank};
  if (IsEmbedding(linear)) std::reverse(shape_of_a.begin(), shape_of_a.end());
  if (linear.experts > 0) {
    for (std::vector<int64_t>* shape : {&shape_of_a, &shape_of_b}) shape->insert(shape->begin(), linear.experts);
  }
  std::vector<Tensor> parts;
  for (const std::string& name : names) {
    const GgufTensor &its_a = file.tensors.at(name + ".lora_a"), &its_b = file.tensors.at(name + ".lora_b");
    if (its_a.shape != shape_of_a || its_b.shape != shape_of_b)
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, " does not fit this base model"));
    if (its_a.values != a.values)
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, " has another A than ", names[0]));
    parts.push_back(ToTensor(its_b));
  }
  if (adapter.tensors.empty()) adapter.config.rank = rank;
  if (rank != adapter.config.rank) adapter.config.rank_pattern.emplace_back(linear.name(), rank);
  adapter.tensors[LoraName(adapter.config, linear, "A")] = IncomingA(linear, ToTensor(a));
  adapter.tensors[LoraName(adapter.config, linear, "B")] = IncomingB(linear, at::cat(parts, /*dim=*/-2), config);
  return absl::OkStatus();
}

// A file read back, as an adapter of rank and scale as stored. `path` is for messages.
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
    if (!Holds(file, linear)) continue;
    (linear.parameter.empty() ? adapter.config.target_modules : adapter.config.target_parameters)
        .push_back(linear.name());
    used += 2 * GgufNames(linear).size();
  }
  for (const LinearLayer& linear : TargetedLayers(adapter.config, config)) {
    LUTHIER_RETURN_IF_ERROR(TakeLayer(file, linear, config, path, adapter));
  }
  if (used != file.tensors.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds ", file.tensors.size() - used, " tensors that no layer of this base takes"));
  }
  return adapter;
}

}  // namespace

absl::Status ExportGgufAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                               const TrainedModel& trained, const std::string& path) {
  LUTHIER_RETURN_IF_ERROR(CheckFitsGgufAdapter(adapter.config, config));
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
