#include <cmath>
#include <fstream>

#include "lib/checkpoint/model_facts.h"
#include "lib/checkpoint/model_tensors.h"
#include "tests/fuzz/input.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

void CheckConfig(const ModelConfig& config) {
  Require(config.num_layers == static_cast<int64_t>(config.layers.size()), "there is a row for every layer");
  Require(config.num_kv_heads > 0 && config.num_heads % config.num_kv_heads == 0, "heads share keys evenly");
  Require(config.head_dim > 0 && config.head_dim % 2 == 0, "a head can be rotated");
  for (const double scale : {config.attention_scale, config.logit_scale, config.residual_scale, config.embedding_scale})
    Require(std::isfinite(scale) && scale > 0, "scales are finite");
  for (const RopeConfig& rope : config.ropes) {
    Require(rope.rotary_dim > 0 && rope.rotary_dim <= config.head_dim, "a part of a head is rotated");
    Require(std::isfinite(rope.attention_factor), "cosines are finite");
  }
  for (const LayerConfig& layer : config.layers)
    Require(!layer.rope || *layer.rope < config.ropes.size(), "a layer's frequencies exist");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TempFolder folder;
  std::ofstream(folder.path() + "/config.json", std::ios::binary).write(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<ModelFacts> facts = ReadModelFactsWithoutWeights(folder.path());
  if (!facts.ok()) {
    Require(!facts.status().message().empty(), "a refusal has a reason");
    return 0;
  }
  CheckConfig(facts->config);
  Require(facts->parameters > 0, "a model has parameters");
  Require(ToJson(*facts)["config"] == facts->config_json, "facts are shown with their config");
  return 0;
}

}  // namespace luthier
