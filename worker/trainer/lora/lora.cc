#include "worker/trainer/lora/lora.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "worker/trainer/lora/each_expert.h"
#include "worker/trainer/models/common/experts.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

std::string NameMagnitude(const LinearLayer& linear) { return absl::StrCat(kPeftPrefix, linear.module, kMagnitude); }

// Shapes of every tensor that this config gives this model.
std::map<std::string, std::vector<int64_t>> ExpectedTensors(const AdapterConfig& config, const ModelConfig& model) {
  std::map<std::string, std::vector<int64_t>> expected;
  for (const LinearLayer& linear : TargetedLayers(config, model)) {
    const int64_t ranks = config.RankOf(linear.name()) * linear.matrices();
    expected[LoraName(config, linear, "A")] = {ranks, linear.in};
    expected[LoraName(config, linear, "B")] = {linear.out, ranks};
    if (config.dora) expected[NameMagnitude(linear)] = {linear.out};
  }
  for (const auto& [name, shape] : SavedTensors(config, model)) expected[kPeftPrefix + name] = shape;
  return expected;
}

// The base's weight of a layer as it is stored, the head's included.
const Tensor& StoredWeight(const ModelConfig& model, const NamedTensors& base, const LinearLayer& linear) {
  const bool tied_head = model.tie_word_embeddings && linear.module == kHeadModule;
  return base.at(tied_head ? kEmbedding : linear.module + ".weight");
}

// The same as the layer multiplies by it, [O, I].
Tensor BaseWeight(const ModelConfig& model, const NamedTensors& base, const LinearLayer& linear) {
  const Tensor& stored = StoredWeight(model, base, linear);
  return IsEmbedding(linear) ? stored.t() : stored;
}

// Why a tensor that belongs to no adapter does not fit; empty if it is the base's head or embedding, which PEFT adds to
// a file that adapts them, and to any with save_embedding_layers.
std::string WhyUnexpected(const TensorView& stored, const ModelConfig& model, const NamedTensors* base) {
  for (const LinearLayer& layer : {HeadLayer(model), EmbeddingLayer(model)}) {
    const std::string name = kPeftPrefix + layer.module;
    if (base == nullptr || (stored.name != name + ".base_layer.weight" && stored.name != name + ".weight")) continue;
    const Tensor weight_VD = StoredWeight(model, *base, layer).to(at::kCPU);
    if (at::equal(ToTensor(stored, weight_VD.scalar_type()), weight_VD)) return "";
    return absl::StrCat("unexpected: ", stored.name,
                        ", which is not the base's; take the base that it was trained on, "
                        "or merge it there with PEFT, and use the result as a base model");
  }
  return absl::StrCat("unexpected: ", stored.name);
}

// PEFT also reads tensors by the names that they have in memory, where `default`, the adapter's name, is part of them.
std::map<std::string, TensorView> ByStoredNames(const std::map<std::string, TensorView>& tensors) {
  std::map<std::string, TensorView> stored;
  for (const auto& [name, view] : tensors) {
    std::string its = name;
    const size_t parameter = name.rfind(".lora_"), adapter = name.find(".default", parameter);
    if (parameter != std::string::npos && adapter != std::string::npos) {
      its.erase(adapter, std::string(".default").size());
      if (its.ends_with(absl::StrCat(kMagnitude, ".weight"))) its.resize(its.rfind('.'));
    }
    stored[its] = view;
    stored[its].name = its;
  }
  return stored;
}

absl::StatusOr<SafetensorsFile> OpenWeights(const std::string& folder) {
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(folder + "/" + kAdapterWeightsFile);
  if (!absl::IsNotFound(file.status())) return file;
  const bool pickled = std::filesystem::exists(folder + "/adapter_model.bin");
  return absl::NotFoundError(
      absl::StrCat(file.status().message(), pickled ? "; adapter_model.bin is a pickle, which can run code and is not "
                                                      "read: save the adapter as safetensors, as PEFT does by itself"
                                                    : "; give an adapter folder in PEFT format"));
}

// Of a targeted layer.
LoraWeights WeightsOf(const Adapter& adapter, const LinearLayer& linear) {
  const AdapterConfig& config = adapter.config;
  return {adapter.tensors.at(LoraName(config, linear, "A")), adapter.tensors.at(LoraName(config, linear, "B")),
          config.ScaleOf(linear.name()), config.dropout,
          config.dora ? adapter.tensors.at(NameMagnitude(linear)) : Tensor()};
}

LoraLayers CollectLayers(const ModelConfig& model, const std::vector<const Adapter*>& adapters) {
  LoraLayers layers;
  for (size_t i = 0; i < adapters.size(); ++i) {
    for (const LinearLayer& linear : TargetedLayers(adapters[i]->config, model)) {
      std::vector<LoraWeights>& of_layer = layers[linear.module];
      of_layer.resize(adapters.size());
      of_layer[i] = WeightsOf(*adapters[i], linear);
    }
  }
  return layers;
}

bool AdaptsExperts(const AdapterConfig& config, const ModelConfig& model) {
  const std::vector<LinearLayer> targeted = TargetedLayers(config, model);
  return std::any_of(targeted.begin(), targeted.end(), [](const LinearLayer& linear) { return linear.experts > 0; });
}

// What the adapter of all experts is for each of their matrices in a checkpoint, where gate and up lie apart.
std::vector<std::pair<std::string, LoraWeights>> OfMatrices(const LinearLayer& linear, const LoraWeights& all) {
  const std::string experts = linear.module.substr(0, linear.module.rfind('.'));
  const std::vector<std::string> names = PartsOf(linear);
  std::vector<std::pair<std::string, LoraWeights>> matrices;
  for (size_t part = 0; part < names.size(); ++part) {
    int64_t expert = 0;
    for (const LoraWeights& lora :
         OfEachExpert(all, linear.experts, static_cast<int64_t>(part), static_cast<int64_t>(names.size()))) {
      matrices.emplace_back(absl::StrCat(experts, ".", expert++, ".", names[part], ".weight"), lora);
    }
  }
  return matrices;
}

// W + scale · B·A in fp32, with DoRA brought to its length. `name` is for messages.
absl::StatusOr<Tensor> Merged(const std::string& name, const Tensor& weight_OI, const LoraWeights& lora) {
  Tensor adapted_OI = weight_OI.to(at::kFloat) + lora.scale * at::mm(lora.b_OR, lora.a_RI);
  if (lora.magnitude_O.defined()) adapted_OI = adapted_OI * DoraFactors(weight_OI, lora).unsqueeze(1);
  if (adapted_OI.isfinite().all().item<bool>()) return adapted_OI;
  return absl::OutOfRangeError(
      absl::StrCat(name, ": is not finite after merging; the adapter holds NaN or values too large"));
}

// Puts a tensor into `weights`. Returns whether head and embedding are two matrices from here on: of a tied model, the
// other one stays what both were.
bool Replace(const ModelConfig& model, const std::string& name, const Tensor& tensor, NamedTensors& weights) {
  const bool untied = model.tie_word_embeddings && (name == kHead || name == kEmbedding);
  if (untied) weights.emplace(kHead, weights.at(kEmbedding));
  weights[name] = tensor;
  return untied;
}

// The same for the modules that the adapter replaces.
bool ReplaceSavedModules(const ModelConfig& model, const Adapter& adapter, NamedTensors& weights) {
  bool untied = false;
  for (const auto& [name, shape] : SavedTensors(adapter.config, model)) {
    if (Replace(model, name, adapter.tensors.at(kPeftPrefix + name), weights)) untied = true;
  }
  return untied;
}

}  // namespace

std::string LoraName(const AdapterConfig& config, const LinearLayer& targeted, absl::string_view which) {
  return IsEmbedding(targeted) ? absl::StrCat(kPeftPrefix, targeted.module, ".lora_embedding_", which)
                               : absl::StrCat(kPeftPrefix, StoredUnder(config, targeted), ".lora_", which, ".weight");
}

absl::StatusOr<Adapter> MakeAdapter(const AdapterConfig& config, const ModelConfig& model, const NamedTensors& base,
                                    uint64_t seed) {
  LUTHIER_RETURN_IF_ERROR(CheckAdapterNames(config, model));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Adapter adapter{config, {}};
  for (const LinearLayer& linear : TargetedLayers(config, model)) {
    const int64_t ranks = config.RankOf(linear.name()) * linear.matrices();
    Tensor a_RI = at::zeros({ranks, linear.in}), b_OR = at::zeros({linear.out, ranks});
    if (IsEmbedding(linear)) {
      b_OR.normal_(0, 1, generator);
    } else {
      const double bound = 1 / std::sqrt(static_cast<double>(linear.in));
      a_RI.uniform_(-bound, bound, generator);
    }
    adapter.tensors[LoraName(config, linear, "A")] = a_RI;
    adapter.tensors[LoraName(config, linear, "B")] = b_OR;
    if (config.dora)
      adapter.tensors[NameMagnitude(linear)] = at::norm(BaseWeight(model, base, linear).to(at::kFloat), 2, /*dim=*/1);
  }
  for (const auto& [name, shape] : SavedTensors(config, model)) {
    const bool tied_head = model.tie_word_embeddings && name == kHead;
    adapter.tensors[kPeftPrefix + name] =
        base.at(tied_head ? kEmbedding : name).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  }
  return adapter;
}

absl::StatusOr<Adapter> ReadAdapter(const std::string& folder, const ModelConfig& model, const NamedTensors* base) {
  LUTHIER_ASSIGN_OR_RETURN(AdapterConfig config, ReadAdapterConfig(folder));
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, OpenWeights(folder));
  std::map<std::string, TensorView> stored = ByStoredNames(file.tensors());
  NamedTensors joined;  // keeps what `stored` borrows
  if (model.experts && AdaptsEachExpert(stored)) {
    LUTHIER_ASSIGN_OR_RETURN(joined, JoinExperts(model, config, stored));
  }
  const auto expected = ExpectedTensors(config, model);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      faults.push_back(absl::StrCat("missing: ", name));
    } else if (found->second.shape != shape) {
      faults.push_back(absl::StrCat("wrong shape: ", name, " is ", ShapeString(found->second.shape), ", must be ",
                                    ShapeString(shape)));
    }
  }
  for (const auto& [name, view] : stored) {
    if (expected.contains(name)) continue;
    if (std::string fault = WhyUnexpected(view, model, base); !fault.empty()) faults.push_back(std::move(fault));
  }
  if (expected.empty()) faults.push_back("target_modules and target_parameters match no layer of the base");
  if (!faults.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": the adapter does not fit this base model:\n  ", absl::StrJoin(faults, "\n  ")));
  }
  Adapter adapter{std::move(config), {}};
  for (const auto& [name, shape] : expected) {
    const Tensor& tensor = adapter.tensors[name] = ToTensor(stored.at(name), at::kFloat);
    if (tensor.isfinite().all().item<bool>()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": ", name, " holds NaN or infinite numbers; take an earlier state of the adapter, or train it again"));
  }
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
    if (adapters.size() > 1 && AdaptsExperts(adapter->config, model)) {
      return absl::InvalidArgumentError("an adapter on experts cannot share the base with others; load it alone");
    }
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
    if (linear.experts > 0) {
      for (const auto& [name, of_matrix] : OfMatrices(linear, lora)) {
        LUTHIER_ASSIGN_OR_RETURN(merged.weights[name], Merged(name, base.at(name), of_matrix));
      }
      continue;
    }
    LUTHIER_ASSIGN_OR_RETURN(const Tensor adapted_OI,
                             Merged(linear.module + ".weight", BaseWeight(model, base, linear), lora));
    const Tensor stored = IsEmbedding(linear) ? adapted_OI.t().contiguous() : adapted_OI;
    if (Replace(model, linear.module + ".weight", stored, merged.weights)) merged.untied = true;
  }
  return merged;
}

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeMergedModel(const ModelConfig& model, const MergedModel& merged) {
  ModelConfig config = model;
  if (merged.untied) config.tie_word_embeddings = false;
  return MakeModel(config, merged.weights, {});
}

}  // namespace luthier
