#include "worker/trainer/lora/lora.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

std::string NameA(const LinearLayer& linear) { return absl::StrCat("base_model.model.", linear.module, ".lora_A.weight"); }
std::string NameB(const LinearLayer& linear) { return absl::StrCat("base_model.model.", linear.module, ".lora_B.weight"); }

// Shapes of every tensor that this config gives this model.
std::map<std::string, std::vector<int64_t>> ExpectedTensors(const AdapterConfig& config,
                                                            const std::vector<LinearLayer>& linears) {
  std::map<std::string, std::vector<int64_t>> expected;
  for (const LinearLayer& linear : linears) {
    if (!config.Targets(linear.module, linear.layer)) continue;
    const int64_t rank = config.RankOf(linear.module);
    expected[NameA(linear)] = {rank, linear.in};
    expected[NameB(linear)] = {linear.out, rank};
  }
  return expected;
}

}  // namespace

absl::StatusOr<Adapter> MakeAdapter(const AdapterConfig& config, const std::vector<LinearLayer>& linears, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Adapter adapter{config, {}};
  for (const LinearLayer& linear : linears) {
    if (!config.Targets(linear.module, linear.layer)) continue;
    const int64_t rank = config.RankOf(linear.module);
    const double bound = 1 / std::sqrt(static_cast<double>(linear.in));
    adapter.tensors[NameA(linear)] = at::empty({rank, linear.in}).uniform_(-bound, bound, generator);
    adapter.tensors[NameB(linear)] = at::zeros({linear.out, rank});
  }
  if (adapter.tensors.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("lora.target_modules: [", absl::StrJoin(config.target_modules, ", "),
                                                   "] matches no linear layer; names are q_proj, k_proj, v_proj, o_proj, "
                                                   "gate_proj, up_proj, down_proj, or use all-linear"));
  }
  return adapter;
}

absl::StatusOr<Adapter> ReadAdapter(const std::string& folder, const std::vector<LinearLayer>& linears) {
  LUTHIER_ASSIGN_OR_RETURN(AdapterConfig config, ReadAdapterConfig(folder));
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(folder + "/adapter_model.safetensors"));
  const auto expected = ExpectedTensors(config, linears);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const auto stored = file.tensors().find(name);
    if (stored == file.tensors().end()) {
      faults.push_back(absl::StrCat("missing: ", name));
    } else if (stored->second.shape != shape) {
      faults.push_back(absl::StrCat("wrong shape: ", name, " is ", ShapeString(stored->second.shape), ", must be ", ShapeString(shape)));
    }
  }
  for (const auto& [name, view] : file.tensors()) {
    if (!expected.contains(name)) faults.push_back(absl::StrCat("unexpected: ", name));
  }
  if (!faults.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(folder, ": the adapter does not fit this base model:\n  ", absl::StrJoin(faults, "\n  ")));
  }
  Adapter adapter{std::move(config), {}};
  for (const auto& [name, view] : file.tensors()) adapter.tensors[name] = ToTensor(view, at::kFloat);
  return adapter;
}

absl::Status WriteAdapter(const Adapter& adapter, const std::string& folder) {
  std::vector<Tensor> contiguous;  // keeps what `tensors` borrows
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, tensor] : adapter.tensors) {
    contiguous.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    tensors.push_back(ToWrite(name, contiguous.back()));
  }
  LUTHIER_RETURN_IF_ERROR(WriteSafetensors(folder + "/adapter_model.safetensors", tensors, {{"format", "pt"}}));
  return WriteFileDurably(folder + "/adapter_config.json", ToJson(adapter.config).dump(2) + "\n");
}

LoraLayers CollectLayers(const std::vector<const Adapter*>& adapters, const std::vector<LinearLayer>& linears) {
  LoraLayers layers;
  for (const LinearLayer& linear : linears) {
    std::vector<LoraWeights> of_layer;
    bool targeted = false;
    for (const Adapter* adapter : adapters) {
      const auto a = adapter->tensors.find(NameA(linear));
      if (a == adapter->tensors.end()) {
        of_layer.emplace_back();
        continue;
      }
      targeted = true;
      of_layer.push_back({a->second, adapter->tensors.at(NameB(linear)), adapter->config.ScaleOf(linear.module), adapter->config.dropout});
    }
    if (targeted) layers[linear.module] = std::move(of_layer);
  }
  return layers;
}

NamedTensors MergeAdapter(const NamedTensors& base, const Adapter& adapter, const std::vector<LinearLayer>& linears) {
  NamedTensors merged = base;
  for (const auto& [module, lora] : CollectLayers({&adapter}, linears)) {
    Tensor& weight_OI = merged.at(module + ".weight");
    weight_OI = weight_OI.to(at::kFloat) + lora[0].scale * at::mm(lora[0].b_OR, lora[0].a_RI);
  }
  return merged;
}

}  // namespace luthier
