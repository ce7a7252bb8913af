#include "worker/trainer/train/step.h"

#include <algorithm>
#include <vector>

#include "worker/trainer/train/tuning.h"

namespace luthier {
namespace {

// One factor for the whole step: the mean is over its tokens, however they were split into micro-batches.
double MeanFactor(const StepResult& result) { return 1 / static_cast<double>(std::max<int64_t>(result.trained_tokens, 1)); }

}  // namespace

AdamW MakeOptimizer(const Run& run) {
  AdamW::Options options{*run.training().beta1, *run.training().beta2, 1e-8, *run.training().weight_decay, {},
                         LearningRateFactors(run.plan.recipe, run.trained)};
  // Norm weights are pulled towards 1 by nothing; decaying them to 0 only harms (as transformers' Trainer).
  for (const auto& [name, tensor] : run.trained) {
    if (tensor.dim() == 1) options.no_decay.insert(name);
  }
  return AdamW(run.trained, std::move(options));
}

PackedBatch Pack(const Run& run, const MicroBatch& rows) {
  std::vector<const Example*> examples;
  for (const int32_t row : rows) examples.push_back(&run.examples[static_cast<size_t>(row)]);
  return MakePackedBatch(examples, at::kCPU);
}

StepResult ComputeGradients(const Run& run, const Step& step) {
  StepResult result;
  double loss_sum = 0;
  for (const MicroBatch& rows : step) {
    const PackedBatch batch = Pack(run, rows);
    const Tensor loss = SumLoss(*run.model, batch);
    loss.backward();
    loss_sum += loss.item<double>();
    result.trained_tokens += batch.trained_tokens();
    result.tokens += batch.size();
  }
  result.loss = loss_sum * MeanFactor(result);
  result.grad_norm = GlobalGradientNorm(run.trained) * MeanFactor(result);
  return result;
}

void ApplyGradients(const Run& run, const StepResult& result, double learning_rate, AdamW& optimizer) {
  optimizer.Step(learning_rate, MeanFactor(result) * ClipFactor(result.grad_norm, *run.training().clip_norm));
  optimizer.ZeroGradients();
}

}  // namespace luthier
