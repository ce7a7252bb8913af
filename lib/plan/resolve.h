// Chooses every value that a job leaves open, and says why. A value that the user gave is never changed.
// The rules and their sources are in rules.cc, one small function for each; what is warned of is in warnings.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/plan/facts.h"
#include "lib/plan/job_spec.h"
#include "lib/plan/memory.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Rows of a part whose answers are generated and scored, where the job does not say: evaluation.max_rows.
inline constexpr int64_t kScoredRows = 200;

// `loss_on` to encode rows with before their kind is known: what Resolve will choose for conversations.
std::string LossOnBeforeRowsAreKnown(const Recipe& recipe);

struct ResolvedValue {
  std::string field;   // "lora.rank"
  std::string value;   // as text
  std::string reason;  // "given", or the rule with its inputs
};

struct ResolvedSpec {
  Recipe recipe;  // every optional has a value, except max_steps, patience, and clip_norm with optimizer_in_backward
  std::vector<ResolvedValue> values;  // in the order of the job file
  std::vector<std::string> warnings;
  int64_t total_steps = 0;  // estimate; packing decides the exact number
  MemoryEstimate memory;
};

// Errors: INVALID_ARGUMENT if the dataset is empty or a given max_length exceeds the model's context;
// RESOURCE_EXHAUSTED if the estimate exceeds the device's memory, with both figures and the remedy.
absl::StatusOr<ResolvedSpec> Resolve(const Recipe& recipe, const ModelFacts& model, const DatasetFacts& dataset,
                                     const DeviceFacts& device);

// `[{field, value, reason}]`, as in the trainer's `started` event.
nlohmann::json ToJson(const std::vector<ResolvedValue>& values);

}  // namespace luthier
