// One optimizer step, apart from what a run does around it: the bench times the same code.
#pragma once

#include <cstdint>

#include "lib/dataset/batches.h"
#include "worker/trainer/train/adamw.h"
#include "worker/trainer/train/batch.h"
#include "worker/trainer/train/preparation.h"

namespace luthier {

struct StepResult {
  double loss = 0;       // mean over the trained tokens of all micro-batches, nats
  double grad_norm = 0;  // of the gradient of that mean
  int64_t tokens = 0;
  int64_t trained_tokens = 0;
};

AdamW MakeOptimizer(const Run& run);

// The rows of a micro-batch as tensors.
PackedBatch Pack(const Run& run, const MicroBatch& rows);

// Forward and backward over the micro-batches. The gradients of `run.trained` are then sums over tokens, not yet means.
StepResult ComputeGradients(const Run& run, const Step& step);

// Means and clips the gradients on the way, moves `run.trained`, and forgets the gradients. `result` must be finite.
void ApplyGradients(const Run& run, const StepResult& result, double learning_rate, AdamW& optimizer);

}  // namespace luthier
