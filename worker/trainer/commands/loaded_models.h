// A base model with the adapters to choose from, for generate and evaluate.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_config.h"
#include "lib/text/chat_template.h"
#include "lib/text/template_source.h"
#include "lib/text/tokenizer.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// An adapter as the command line names it.
struct NamedFolder {
  std::string name;
  std::string folder;
};

// Stays where it is, since models share tensors and refer to adapters.
struct LoadedModels {
  ModelConfig config;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  NamedTensors weights;
  // The base itself first, then a model for each adapter; all share the base's weights.
  std::vector<std::string> names;
  std::vector<Adapter> adapters;  // one less
  std::vector<std::unique_ptr<DecoderModel>> models;
  TemplateSources own_template;  // that the adapters were trained with, if it is not the base model's

  const ChatTemplate* template_or_null() const { return chat_template ? &*chat_template : nullptr; }
};

// Errors: those of reading base and adapters; INVALID_ARGUMENT if the adapters have different chat templates.
absl::StatusOr<std::unique_ptr<LoadedModels>> LoadModels(const std::string& base,
                                                         const std::vector<NamedFolder>& adapters);

}  // namespace luthier
