#include "lib/checkpoint/model_facts.h"

#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/text/template_source.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Sizes that are each in range may still be out of range together.
absl::StatusOr<int64_t> CountParameters(const ModelConfig& config) {
  constexpr double kMostParameters = 1e15;  // a double is exact up to there
  double parameters = 0;
  for (const auto& [name, shape] : CheckpointTensors(config)) parameters += static_cast<double>(NumElements(shape));
  if (parameters <= kMostParameters) return static_cast<int64_t>(parameters);
  return absl::InvalidArgumentError(absl::StrCat("config.json: its sizes make a model of ", parameters,
                                                 " parameters; must be at most ", kMostParameters));
}

// A template is a file of its own (transformers 5) or a field of tokenizer_config.json.
bool HasChatTemplate(const fs::path& folder) {
  if (fs::exists(folder / kTemplateFile)) return true;
  std::ifstream stream(folder / "tokenizer_config.json");
  const json config = json::parse(stream, nullptr, /*allow_exceptions=*/false);
  return config.is_object() && config.contains("chat_template") && !config["chat_template"].is_null();
}

}  // namespace

absl::StatusOr<ModelFacts> ReadModelFactsWithoutWeights(const std::string& folder) {
  ModelFacts facts;
  LUTHIER_ASSIGN_OR_RETURN(facts.config_json, ReadConfigJson(folder));
  LUTHIER_ASSIGN_OR_RETURN(facts.config, ParseModelConfig(facts.config_json));
  LUTHIER_ASSIGN_OR_RETURN(facts.parameters, CountParameters(facts.config));
  facts.dtype = "F32";
  facts.has_tokenizer = fs::exists(fs::path(folder) / "tokenizer.json");
  facts.has_chat_template = HasChatTemplate(folder);
  return facts;
}

absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(ModelFacts facts, ReadModelFactsWithoutWeights(folder));
  LUTHIER_ASSIGN_OR_RETURN(const WeightFolder weights, WeightFolder::Open(folder));
  LUTHIER_RETURN_IF_ERROR(CheckTensors(facts.config, weights.tensors()));
  size_t largest = 0;
  for (const auto& [name, view] : weights.tensors()) {
    facts.weight_bytes += static_cast<int64_t>(view.bytes.size());
    if (view.bytes.size() <= largest) continue;
    largest = view.bytes.size();
    facts.dtype = std::string(DtypeName(view.dtype));
  }
  return facts;
}

json ToJson(const ModelFacts& facts) {
  return {{"config", facts.config_json},          {"parameters", facts.parameters},
          {"weight_bytes", facts.weight_bytes},   {"dtype", facts.dtype},
          {"has_tokenizer", facts.has_tokenizer}, {"has_chat_template", facts.has_chat_template}};
}

}  // namespace luthier
