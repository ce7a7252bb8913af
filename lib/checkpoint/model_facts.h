// What is known of a model folder without loading its weights: enough to plan a job where there is no GPU.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_config.h"
#include "nlohmann/json.hpp"

namespace luthier {

struct ModelFacts {
  nlohmann::json config_json;  // config.json as it is stored; written again with a full checkpoint
  ModelConfig config;          // the same, parsed
  int64_t parameters = 0;      // tied ones once
  int64_t weight_bytes = 0;    // on disk
  std::string dtype;           // of the largest tensor: "F64", "F32", "BF16", "F16"
  bool has_tokenizer = false;
  bool has_chat_template = false;
};

// Reads config.json and the tensor headers of a folder and checks them against the architecture.
// Errors: NOT_FOUND; INVALID_ARGUMENT listing every missing, unexpected and misshapen tensor.
absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& folder);

// The facts of a folder that holds a config.json and no weights (`init: random`), as fp32.
absl::StatusOr<ModelFacts> ReadModelFactsWithoutWeights(const std::string& folder);

// As the API shows them.
nlohmann::json ToJson(const ModelFacts& facts);

}  // namespace luthier
