#include "worker/trainer/train/tuning.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/name_pattern.h"
#include "lib/plan/adapter_plan.h"

namespace luthier {
namespace {

// All weights but the frozen ones. Requires: CheckFrozenNames.
NamedTensors Unfrozen(const NamedTensors& weights, const std::vector<std::string>& patterns) {
  NamedTensors trained = weights;
  for (const std::string& pattern : patterns) {
    std::erase_if(trained, [&](const auto& weight) { return MatchesBeginning(pattern, weight.first); });
  }
  return trained;
}

// What two adapters must share so that one can go on where the other ended.
nlohmann::json ShapeOf(const AdapterConfig& config) {
  nlohmann::json shape = ToJson(config);
  for (const char* field : {"base_model_name_or_path", "lora_dropout", "init_lora_weights", "inference_mode",
                            "target_modules", "target_parameters"})
    shape.erase(field);
  return shape;
}

// An adapter to go on from. What the job says of ranks and targets must be what the adapter has.
absl::StatusOr<Adapter> StartFrom(const std::string& folder, const AdapterConfig& wanted, const ModelConfig& config,
                                  const NamedTensors& base) {
  LUTHIER_ASSIGN_OR_RETURN(Adapter adapter, ReadAdapter(folder, config, &base));
  LUTHIER_ASSIGN_OR_RETURN(const Adapter fresh, MakeAdapter(wanted, config, base, /*seed=*/0));
  std::vector<std::string> differences;
  const nlohmann::json found = ShapeOf(adapter.config), asked = ShapeOf(wanted);
  for (const auto& [field, value] : asked.items()) {
    if (found.value(field, nlohmann::json()) != value) {
      differences.push_back(absl::StrCat(field, " is ", found.value(field, nlohmann::json()).dump(),
                                         ", the job asks for ", value.dump()));
    }
  }
  // Patterns that overlap may stand in another order; of ranks, the tensors' sizes tell.
  for (const LinearLayer& layer : TargetedLayers(wanted, config)) {
    const double its = adapter.config.ScaleOf(layer.name()), asked_for = wanted.ScaleOf(layer.name());
    if (its != asked_for)
      differences.push_back(absl::StrCat("scales ", layer.name(), " by ", its, ", the job asks for ", asked_for));
  }
  for (const auto& [name, tensor] : fresh.tensors) {
    const auto its = adapter.tensors.find(name);
    if (its == adapter.tensors.end()) {
      differences.push_back(absl::StrCat("lacks ", name));
    } else if (its->second.sizes() != tensor.sizes()) {  // one parameter of experts has the names of the other
      differences.push_back(absl::StrCat("has ", name, " of another layer"));
    }
  }
  for (const auto& [name, tensor] : adapter.tensors) {
    if (!fresh.tensors.contains(name))
      differences.push_back(absl::StrCat("has ", name, ", which the job does not target"));
  }
  constexpr size_t kShown = 10;
  if (differences.size() > kShown) differences.resize(kShown);
  if (!differences.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("start_adapter: ", folder,
                                                   " differs from the job's lora block; give its values there:\n  ",
                                                   absl::StrJoin(differences, "\n  ")));
  }
  adapter.config = wanted;
  return adapter;
}

}  // namespace

absl::StatusOr<Tuning> MakeTuning(const Recipe& recipe, const ModelConfig& config, const NamedTensors& base,
                                  const std::string& base_name, const std::string& start_adapter) {
  Tuning tuning;
  if (recipe.tuning == "full") {
    LUTHIER_RETURN_IF_ERROR(CheckFrozenNames(recipe.training.freeze, config));
    tuning.trained = Unfrozen(base, recipe.training.freeze);
  } else {
    AdapterConfig wanted = AdapterConfigOf(recipe.lora, config);
    wanted.base_model_name = base_name;
    LUTHIER_ASSIGN_OR_RETURN(tuning.adapter,
                             start_adapter.empty()
                                 ? MakeAdapter(wanted, config, base, static_cast<uint64_t>(*recipe.training.seed))
                                 : StartFrom(start_adapter, wanted, config, base));
    for (auto& [name, tensor] : tuning.adapter.tensors) tensor = tensor.to(base.begin()->second.device());
    tuning.trained = tuning.adapter.tensors;
  }
  for (auto& [name, tensor] : tuning.trained) tensor.set_requires_grad(true);
  LUTHIER_ASSIGN_OR_RETURN(tuning.model, recipe.tuning == "full" ? MakeModel(config, base, {})
                                                                 : MakeTunedModel(config, base, {&tuning.adapter}));
  return tuning;
}

std::map<std::string, double> LearningRateFactors(const Recipe& recipe, const NamedTensors& trained) {
  std::map<std::string, double> factors;
  if (!recipe.lora.plus_ratio) return factors;
  for (const auto& [name, tensor] : trained) {
    if (absl::StrContains(name, ".lora_embedding_")) {
      factors[name] = kPlusEmbeddingRate / *recipe.training.learning_rate;
    } else if (absl::StrContains(name, ".lora_B.") || tensor.dim() == 1) {
      factors[name] = *recipe.lora.plus_ratio;
    }
  }
  return factors;
}

std::set<std::string> WithoutDecay(const NamedTensors& trained) {
  std::set<std::string> without;
  for (const auto& [name, tensor] : trained) {
    if (tensor.dim() == 1 && !absl::EndsWith(name, kMagnitude)) without.insert(name);
  }
  return without;
}

}  // namespace luthier
