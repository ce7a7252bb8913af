// The rules by which values are chosen that a job leaves open: pure functions of what is known by then. Where a rule
// comes from stands above it in rules.cc.
#pragma once

#include <cstdint>
#include <string>

#include "lib/checkpoint/model_facts.h"
#include "lib/plan/facts.h"
#include "lib/plan/job_spec.h"
#include "lib/plan/memory.h"

namespace luthier {

// A chosen value and why.
template <typename T>
struct Choice {
  T value;
  std::string reason;
};

// Rows below which a dataset is small.
inline constexpr int64_t kSmallDataset = 1000;

Choice<int64_t> ChooseRank(const DatasetFacts& dataset);
Choice<double> ChooseAlpha();

Choice<double> ChooseEpochs(const DatasetFacts& dataset);
Choice<int64_t> ChooseMaxLength(const ModelConfig& config, const DatasetFacts& dataset);
// Of a step.
int64_t BatchRows(double rows, double epochs);
double TokensPerRow(const DatasetFacts& dataset, int64_t max_length);
// Requires: the `lora` block of `recipe` is settled, unless tuning is full.
Choice<double> ChooseLearningRate(const Recipe& recipe, const ModelConfig& config, int64_t steps);
Choice<std::string> ChoosePrecision(const DeviceFacts& device);
Choice<std::string> ChooseLossOn(const Recipe& recipe, const DatasetFacts& dataset);

// `inputs`: without micro-batches.
Choice<bool> ChooseCheckpointing(const ModelFacts& model, MemoryInputs inputs, const DeviceFacts& device,
                                 int64_t max_length);
Choice<int64_t> ChooseMicroBatch(const ModelFacts& model, const MemoryInputs& inputs, const DeviceFacts& device,
                                 int64_t batch_tokens, int64_t max_length);
// Tokens of the largest forward pass. Requires: length and micro-batch are settled.
int64_t LargestForward(const TrainingSpec& training, const DatasetFacts& dataset);

Choice<int64_t> ChooseEvaluationEvery(int64_t steps);
Choice<std::string> ChooseMetric(const std::string& task, const DatasetFacts& dataset);
Choice<int64_t> ChooseNewTokens(const std::string& task);
Choice<int64_t> ChooseCheckpointEvery(int64_t steps);
// Which weights become the result.
Choice<std::string> ChoosePublished(const DatasetFacts& dataset);

}  // namespace luthier
