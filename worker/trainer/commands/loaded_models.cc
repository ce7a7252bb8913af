#include "worker/trainer/commands/loaded_models.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

// A job's own template lies with its adapter. Prompts are rendered once for all adapters, so they have to agree.
absl::StatusOr<TemplateSources> TemplateOfAdapters(const std::vector<NamedFolder>& adapters) {
  TemplateSources sources;
  for (const NamedFolder& adapter : adapters) {
    LUTHIER_ASSIGN_OR_RETURN(TemplateSources of_adapter, ReadTemplateFiles(adapter.folder));
    if (of_adapter != sources && &adapter != &adapters.front()) {
      return absl::InvalidArgumentError(absl::StrCat("--adapter: ", adapter.name,
                                                     " was trained with another chat template than ",
                                                     adapters.front().name, "; load them one at a time"));
    }
    sources = std::move(of_adapter);
  }
  return sources;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModels>> LoadModels(const std::string& base,
                                                         const std::vector<NamedFolder>& adapters) {
  LUTHIER_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(base));
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(base));
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights, LoadWeights(base, facts.config, at::kFloat, WeightUse::kFrozen));
  auto loaded = std::make_unique<LoadedModels>(
      LoadedModels{facts.config, std::move(tokenizer), std::nullopt, std::move(weights), {"base"}, {}, {}});
  LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {}));
  for (const NamedFolder& adapter : adapters) {
    loaded->names.push_back(adapter.name);
    LUTHIER_ASSIGN_OR_RETURN(Adapter read, ReadAdapter(adapter.folder, facts.config, &loaded->weights));
    LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {&read}));
    loaded->adapters.push_back(std::move(read));
  }
  LUTHIER_ASSIGN_OR_RETURN(loaded->own_template, TemplateOfAdapters(adapters));
  LUTHIER_ASSIGN_OR_RETURN(loaded->chat_template, ChatTemplate::OfJob(base, loaded->own_template, /*date=*/""));
  return loaded;
}

}  // namespace luthier
