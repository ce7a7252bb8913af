#include "worker/trainer/models/model.h"

#include "absl/strings/str_cat.h"
#include "worker/trainer/models/llama/model.h"

namespace luthier {

absl::StatusOr<std::unique_ptr<DecoderModel>> MakeModel(const ModelConfig& config, const NamedTensors& weights,
                                                        const LoraLayers& lora) {
  using Maker = std::unique_ptr<DecoderModel> (*)(const ModelConfig&, const NamedTensors&, const LoraLayers&);
  static const std::map<std::string, Maker> families = {{"llama", &MakeLlama}};
  const auto family = families.find(config.model_type);
  if (family == families.end()) {
    return absl::InvalidArgumentError(absl::StrCat("model_type '", config.model_type, "' has no implementation"));
  }
  return family->second(config, weights, lora);
}

}  // namespace luthier
