#include "worker/trainer/lora/lora.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

constexpr char kPrefix[] = "base_model.model.";
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";

std::string NameA(const LinearLayer& linear) { return absl::StrCat(kPrefix, linear.module, ".lora_A.weight"); }
std::string NameB(const LinearLayer& linear) { return absl::StrCat(kPrefix, linear.module, ".lora_B.weight"); }
std::string NameMagnitude(const LinearLayer& linear) {
  return absl::StrCat(kPrefix, linear.module, ".lora_magnitude_vector");
}

// Shapes of every tensor that this config gives this model.
std::map<std::string, std::vector<int64_t>> ExpectedTensors(const AdapterConfig& config, const ModelConfig& model) {
  std::map<std::string, std::vector<int64_t>> expected;
  for (const LinearLayer& linear : TargetedLayers(config, model)) {
    const int64_t rank = config.RankOf(linear.module);
    expected[NameA(linear)] = {rank, linear.in};
    expected[NameB(linear)] = {linear.out, rank};
    if (config.dora) expected[NameMagnitude(linear)] = {linear.out};
  }
  for (const auto& [name, shape] : SavedTensors(config, model)) expected[kPrefix + name] = shape;
  return expected;
}

// The base's weight of a linear layer, the head's included.
const Tensor& BaseWeight(const ModelConfig& model, const NamedTensors& base, const std::string& module) {
  const bool tied_head = model.tie_word_embeddings && module == "lm_head";
  return base.at(tied_head ? kEmbedding : module + ".weight");
}

// Whether the stored tensor is the base's head, as PEFT adds it to a file that adapts the head.
bool IsHeadOfBase(const TensorView& stored, const ModelConfig& model, const NamedTensors& base) {
  if (stored.name != absl::StrCat(kPrefix, "lm_head.base_layer.weight")) return false;
  const Tensor head_VD = BaseWeight(model, base, "lm_head").to(at::kCPU);
  return at::equal(ToTensor(stored, head_VD.scalar_type()), head_VD);
}

LoraWeights WeightsOf(const Adapter& adapter, const LinearLayer& linear) {
  const auto a = adapter.tensors.find(NameA(linear));
  if (a == adapter.tensors.end()) return {};
  const auto magnitude = adapter.tensors.find(NameMagnitude(linear));
  return {a->second, adapter.tensors.at(NameB(linear)), adapter.config.ScaleOf(linear.module), adapter.config.dropout,
          magnitude == adapter.tensors.end() ? Tensor() : magnitude->second};
}

LoraLayers CollectLayers(const ModelConfig& model, const std::vector<const Adapter*>& adapters) {
  LoraLayers layers;
  for (const LinearLayer& linear : AdaptableLayers(model)) {
    std::vector<LoraWeights> of_layer;
    for (const Adapter* adapter : adapters) of_layer.push_back(WeightsOf(*adapter, linear));
    const bool targeted =
        std::any_of(of_layer.begin(), of_layer.end(), [](const LoraWeights& w) { return w.a_RI.defined(); });
    if (targeted) layers[linear.module] = std::move(of_layer);
  }
  return layers;
}

// Puts the modules that the adapter replaces into `weights`. Returns whether head and embedding are two matrices from
// here on.
bool ReplaceSavedModules(const ModelConfig& model, const Adapter& adapter, NamedTensors& weights) {
  bool untied = false;
  const auto saved = SavedTensors(adapter.config, model);
  if (model.tie_word_embeddings && (saved.contains(kHead) || saved.contains(kEmbedding))) {
    weights[kHead] = weights.at(kEmbedding);
    untied = true;
  }
  for (const auto& [name, shape] : saved) weights[name] = adapter.tensors.at(kPrefix + name);
  return untied;
}

}  // namespace

absl::StatusOr<Adapter> MakeAdapter(const AdapterConfig& config, const ModelConfig& model, const NamedTensors& base,
                                    uint64_t seed) {
  LUTHIER_RETURN_IF_ERROR(CheckAdapterNames(config, model));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Adapter adapter{config, {}};
  for (const LinearLayer& linear : TargetedLayers(config, model)) {
    const int64_t rank = config.RankOf(linear.module);
    const double bound = 1 / std::sqrt(static_cast<double>(linear.in));
    adapter.tensors[NameA(linear)] = at::empty({rank, linear.in}).uniform_(-bound, bound, generator);
    adapter.tensors[NameB(linear)] = at::zeros({linear.out, rank});
    if (config.dora)
      adapter.tensors[NameMagnitude(linear)] =
          at::norm(BaseWeight(model, base, linear.module).to(at::kFloat), 2, /*dim=*/1);
  }
  for (const auto& [name, shape] : SavedTensors(config, model)) {
    const bool tied_head = model.tie_word_embeddings && name == kHead;
    adapter.tensors[kPrefix + name] =
        base.at(tied_head ? kEmbedding : name).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  }
  return adapter;
}

absl::StatusOr<Adapter> ReadAdapter(const std::string& folder, const ModelConfig& model, const NamedTensors* base) {
  LUTHIER_ASSIGN_OR_RETURN(AdapterConfig config, ReadAdapterConfig(folder));
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(folder + "/" + kAdapterWeightsFile));
  const auto expected = ExpectedTensors(config, model);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const auto stored = file.tensors().find(name);
    if (stored == file.tensors().end()) {
      faults.push_back(absl::StrCat("missing: ", name));
    } else if (stored->second.shape != shape) {
      faults.push_back(absl::StrCat("wrong shape: ", name, " is ", ShapeString(stored->second.shape), ", must be ",
                                    ShapeString(shape)));
    }
  }
  for (const auto& [name, view] : file.tensors()) {
    if (expected.contains(name) || (base != nullptr && IsHeadOfBase(view, model, *base))) continue;
    faults.push_back(absl::StrCat("unexpected: ", name));
  }
  if (expected.empty()) faults.push_back("target_modules matches no linear layer of the base");
  if (!faults.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": the adapter does not fit this base model:\n  ", absl::StrJoin(faults, "\n  ")));
  }
  Adapter adapter{std::move(config), {}};
  for (const auto& [name, shape] : expected) adapter.tensors[name] = ToTensor(file.tensors().at(name), at::kFloat);
  return adapter;
}

absl::Status WriteAdapter(const Adapter& adapter, const std::string& folder,
                          const std::map<std::string, std::string>& metadata) {
  std::vector<Tensor> contiguous;  // keeps what `tensors` borrows
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : adapter.tensors) {
    contiguous.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    tensors.push_back(ToWrite(name, contiguous.back()));
  }
  LUTHIER_RETURN_IF_ERROR(WriteSafetensors(folder + "/" + kAdapterWeightsFile, tensors, metadata));
  return WriteFileDurably(folder + "/" + kAdapterConfigFile, ToJson(adapter.config).dump(2) + "\n");
}

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeTunedModel(const ModelConfig& model, const NamedTensors& base,
                                                             const std::vector<const Adapter*>& adapters) {
  NamedTensors weights = base;
  ModelConfig config = model;
  for (const Adapter* adapter : adapters) {
    if (SavedTensors(adapter->config, model).empty()) continue;
    if (adapters.size() > 1) {
      return absl::InvalidArgumentError(
          "an adapter with modules_to_save replaces whole modules of the base, so it cannot share "
          "the base with others; load it alone");
    }
    if (ReplaceSavedModules(model, *adapter, weights)) config.tie_word_embeddings = false;
  }
  return MakeModel(config, weights, CollectLayers(model, adapters));
}

absl::StatusOr<MergedModel> MergeAdapter(const ModelConfig& model, const NamedTensors& base, const Adapter& adapter) {
  at::NoGradGuard no_grad;
  MergedModel merged{base, false};
  merged.untied = ReplaceSavedModules(model, adapter, merged.weights);
  for (const LinearLayer& linear : TargetedLayers(adapter.config, model)) {
    const LoraWeights lora = WeightsOf(adapter, linear);
    const Tensor& weight_OI = BaseWeight(model, base, linear.module);
    Tensor adapted_OI = weight_OI.to(at::kFloat) + lora.scale * at::mm(lora.b_OR, lora.a_RI);
    if (lora.magnitude_O.defined()) adapted_OI = adapted_OI * DoraFactors(weight_OI, lora).unsqueeze(1);
    if (!adapted_OI.isfinite().all().item<bool>()) {
      return absl::OutOfRangeError(absl::StrCat(linear.module,
                                                ".weight: is not finite after merging; the adapter holds NaN or "
                                                "values too large"));
    }
    const std::string name = linear.module + ".weight";
    if (name == kHead && model.tie_word_embeddings) merged.untied = true;
    merged.weights[name] = adapted_OI;
  }
  return merged;
}

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeMergedModel(const ModelConfig& model, const MergedModel& merged) {
  ModelConfig config = model;
  if (merged.untied) config.tie_word_embeddings = false;
  return MakeModel(config, merged.weights, {});
}

}  // namespace luthier
