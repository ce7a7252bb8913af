#include "lib/checkpoint/model_tensors.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/checkpoint/families/families.h"

namespace luthier {
namespace {

// A checkpoint of another model lists thousands of faults; the first ones tell.
constexpr size_t kMaxReported = 50;

// The family is known: ParseModelConfig makes no config of another one.
TensorTable TableOf(const ModelConfig& config) {
  return DecoderTable(config, FindFamily(config.model_type)->add_layer);
}

bool IsWeightDtype(Dtype dtype) {
  return dtype == Dtype::kF64 || dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16;
}

}  // namespace

std::map<std::string, std::vector<int64_t>> CheckpointTensors(const ModelConfig& config) {
  return TableOf(config).tensors();
}

std::vector<LinearLayer> LinearLayers(const ModelConfig& config) { return TableOf(config).linears(); }

std::vector<LinearLayer> ParameterLayers(const ModelConfig& config) { return TableOf(config).parameters(); }

LinearLayer HeadLayer(const ModelConfig& config) { return {kHeadModule, -1, config.hidden_size, config.vocab_size}; }

LinearLayer EmbeddingLayer(const ModelConfig& config) {
  return {kEmbeddingModule, -1, config.vocab_size, config.hidden_size};
}

bool IsEmbedding(const LinearLayer& layer) { return layer.module == kEmbeddingModule; }

std::vector<LinearLayer> ModuleLayers(const ModelConfig& config) {
  std::vector<LinearLayer> layers = LinearLayers(config);
  layers.push_back(HeadLayer(config));
  layers.push_back(EmbeddingLayer(config));
  return layers;
}

std::vector<LinearLayer> AdaptableLayers(const ModelConfig& config) {
  std::vector<LinearLayer> layers = ModuleLayers(config), parameters = ParameterLayers(config);
  layers.insert(layers.end(), parameters.begin(), parameters.end());
  return layers;
}

std::vector<std::string> LinearLayerNames(const ModelConfig& config) {
  std::set<std::string> names;
  for (const LinearLayer& linear : LinearLayers(config))
    names.insert(linear.module.substr(linear.module.rfind('.') + 1));
  return {names.begin(), names.end()};
}

std::map<std::string, std::vector<int64_t>> SavedTensors(const AdapterConfig& adapter, const ModelConfig& config) {
  std::map<std::string, std::vector<int64_t>> saved;
  if (adapter.modules_to_save.empty()) return saved;
  auto tensors = CheckpointTensors(config);
  tensors.emplace(kHead, std::vector<int64_t>{config.vocab_size, config.hidden_size});
  for (auto& [name, shape] : tensors) {
    if (adapter.Saves(name.substr(0, name.rfind('.')))) saved.emplace(name, std::move(shape));
  }
  return saved;
}

const TensorView* FindStored(const ModelConfig& config, const std::map<std::string, TensorView>& stored,
                             const std::string& name) {
  auto found = stored.find(name);
  if (found == stored.end() && config.tie_word_embeddings && name == kEmbedding) found = stored.find(kHead);
  return found == stored.end() ? nullptr : &found->second;
}

absl::Status CheckTensors(const ModelConfig& config, const std::map<std::string, TensorView>& stored) {
  const auto expected = CheckpointTensors(config);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const TensorView* found = FindStored(config, stored, name);
    if (found == nullptr) {
      faults.push_back(absl::StrCat("missing: ", name, " ", ShapeString(shape)));
    } else if (found->shape != shape) {
      faults.push_back(absl::StrCat("wrong shape: ", name, " is ", ShapeString(found->shape), ", config.json says ",
                                    ShapeString(shape)));
    } else if (!IsWeightDtype(found->dtype)) {
      faults.push_back(
          absl::StrCat("wrong dtype: ", name, " is ", DtypeName(found->dtype), "; supported: F64, F32, BF16, F16"));
    }
  }
  for (const auto& [name, view] : stored) {
    const bool harmless = absl::EndsWith(name, "rotary_emb.inv_freq") || (config.tie_word_embeddings && name == kHead);
    if (!expected.contains(name) && !harmless) faults.push_back(absl::StrCat("unexpected: ", name));
  }
  if (faults.empty()) return absl::OkStatus();
  const size_t total = faults.size();
  if (total > kMaxReported) {
    faults.resize(kMaxReported);
    faults.push_back(absl::StrCat("… and ", total - kMaxReported, " more"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the weights do not fit config.json:\n  ", absl::StrJoin(faults, "\n  ")));
}

}  // namespace luthier
