// The committed cases of every family (tests/fixtures/models), opened. Tests run in the root of the repository.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lib/checkpoint/model_config.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/batch.h"

namespace luthier {

inline std::vector<std::string> FixtureFamilies() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("tests/fixtures/models")) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  return names;
}

// One family's base model and its trained adapter, or a case of another folder.
struct ModelFixture {
  explicit ModelFixture(const std::string& family, const std::string& cases = "tests/fixtures/models/")
      : folder(cases + family),
        config_json(*ReadConfigJson(folder + "/base")),
        config(*ReadModelConfig(folder + "/base")),
        base(*LoadWeights(folder + "/base", config, at::kFloat, WeightUse::kFrozen)),
        adapter(*ReadAdapter(folder + "/adapter_final", config)),
        tuned(*MakeTunedModel(config, base, {&adapter})) {}

  std::string folder;
  nlohmann::json config_json;
  ModelConfig config;
  NamedTensors base;
  Adapter adapter;
  std::unique_ptr<DecoderModel> tuned;
};

// Documents of every token in turn, all of them trained.
inline PackedBatch BatchOf(const std::vector<std::vector<int32_t>>& documents) {
  std::vector<Example> examples;
  for (const std::vector<int32_t>& ids : documents) examples.push_back({ids, std::vector<uint8_t>(ids.size(), 1)});
  std::vector<const Example*> pointers;
  for (const Example& example : examples) pointers.push_back(&example);
  return MakePackedBatch(pointers, at::kCPU);
}

}  // namespace luthier
