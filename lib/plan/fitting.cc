#include "lib/plan/fitting.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/rules.h"

namespace luthier {
namespace {

// A row with fewer tokens hardly holds a question and its answer.
constexpr int64_t kShortestRow = 64;
constexpr char kComputedAgain[] = "training.activation_checkpointing: true";

// A change of one value, in words and of what the estimate depends on.
struct Change {
  std::string text;
  std::function<void(MemoryInputs&)> apply;
};

// Of what is not so yet. Those come first that change least of the result.
std::vector<Change> ChangesOf(const Recipe& settled, const ModelFacts& model, const DatasetFacts& dataset,
                              const MemoryInputs& inputs) {
  std::vector<Change> changes;
  if (!inputs.activation_checkpointing) {
    changes.push_back({kComputedAgain, [](MemoryInputs& changed) { changed.activation_checkpointing = true; }});
  }
  if (!inputs.bf16) changes.push_back({"training.precision: bf16", [](MemoryInputs& changed) { changed.bf16 = true; }});
  if (!inputs.full) return changes;
  const LoraSpec lora = {
      .rank = ChooseRank(dataset).value, .alpha = ChooseAlpha().value, .dropout = 0, .rslora = false};
  const int64_t parameters = TrainedParameters(AdapterConfigOf(lora, model.config), model.config);
  const char* const lora_alone =
      settled.training.freeze.empty() ? "tuning: lora" : "tuning: lora without training.freeze";
  changes.push_back({lora_alone, [parameters](MemoryInputs& changed) {
                       changed.full = false;
                       changed.adapter_parameters = parameters;
                     }});
  return changes;
}

// Bounds of tokens with which the job fits; empty if so few are none to train with. Layers are computed again only
// where the longest row does not fit without.
std::string FewerTokens(const Recipe& settled, const ModelFacts& model, const DatasetFacts& dataset,
                        MemoryInputs inputs, int64_t usable) {
  inputs.accumulates = true;  // steps then have several micro-batches
  const int64_t longest = std::min(dataset.longest_row, *settled.training.max_length);
  const auto bound = [&]() -> std::string {
    const int64_t most = LargestMicroBatch(model, inputs, usable);
    if (most < kShortestRow) return "";
    if (longest <= most) return absl::StrCat("training.micro_batch_tokens of at most ", most);
    return absl::StrCat("training.max_length (and training.micro_batch_tokens, if given) of at most ", most,
                        ", while the longest row has ", longest, " tokens");
  };
  if (inputs.activation_checkpointing || longest <= LargestMicroBatch(model, inputs, usable)) return bound();
  inputs.activation_checkpointing = true;
  const std::string with_it = bound();
  return with_it.empty() ? "" : absl::StrCat(kComputedAgain, " and ", with_it);
}

}  // namespace

std::string WhatWouldFit(const Recipe& settled, const ModelFacts& model, const DatasetFacts& dataset,
                         const MemoryInputs& inputs, int64_t usable) {
  const auto fits = [&](const MemoryInputs& changed) { return EstimateMemory(model, changed).total <= usable; };
  std::vector<std::string> remedies, texts;
  MemoryInputs all = inputs;
  for (const Change& change : ChangesOf(settled, model, dataset, inputs)) {
    MemoryInputs one = inputs;
    change.apply(one);
    change.apply(all);
    if (fits(one)) remedies.push_back(change.text);
    texts.push_back(change.text);
  }
  if (const std::string fewer = FewerTokens(settled, model, dataset, inputs, usable); !fewer.empty())
    remedies.push_back(fewer);
  if (remedies.empty() && !texts.empty()) {
    if (!fits(all)) texts.push_back(FewerTokens(settled, model, dataset, all, usable));
    if (!texts.back().empty()) remedies.push_back(absl::StrJoin(texts, " and "));
  }
  const double needed = static_cast<double>(EstimateMemory(model, inputs).total) / kUsableMemory;
  remedies.push_back(absl::StrFormat("a device with %.2f GB", std::ceil(needed / 1e7) / 100));
  return absl::StrJoin(remedies, ", or ");
}

}  // namespace luthier
