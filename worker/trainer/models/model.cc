#include "worker/trainer/models/model.h"

#include "absl/strings/str_cat.h"
#include "worker/trainer/models/gemma2/model.h"
#include "worker/trainer/models/gemma3/model.h"
#include "worker/trainer/models/granite/model.h"
#include "worker/trainer/models/llama/model.h"
#include "worker/trainer/models/mistral/model.h"
#include "worker/trainer/models/olmo2/model.h"
#include "worker/trainer/models/phi3/model.h"
#include "worker/trainer/models/qwen2/model.h"
#include "worker/trainer/models/qwen3/model.h"
#include "worker/trainer/models/qwen3_moe/model.h"
#include "worker/trainer/models/smollm3/model.h"

namespace luthier {

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeModel(const ModelConfig& config, const NamedTensors& weights,
                                                        const LoraLayers& lora) {
  using Maker = std::unique_ptr<DecoderModel> (*)(const ModelConfig&, const NamedTensors&, const LoraLayers&);
  static const std::map<std::string, Maker> families = {
      {"gemma2", &MakeGemma2},   {"gemma3_text", &MakeGemma3}, {"granite", &MakeGranite}, {"llama", &MakeLlama},
      {"mistral", &MakeMistral}, {"olmo2", &MakeOlmo2},        {"phi3", &MakePhi3},       {"qwen2", &MakeQwen2},
      {"qwen3", &MakeQwen3},     {"qwen3_moe", &MakeQwen3Moe}, {"smollm3", &MakeSmolLm3},
  };
  const auto family = families.find(config.model_type);
  if (family == families.end()) {
    return absl::InvalidArgumentError(absl::StrCat("model_type '", config.model_type, "' has no implementation"));
  }
  return family->second(config, weights, lora);
}

}  // namespace luthier
