// Optimizer steps, apart from what a run does around them: the bench times the same code.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
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
  std::vector<std::pair<int32_t, double>> row_losses;  // row by index, and the mean over its trained tokens
};

// The rows of a micro-batch as tensors.
PackedBatch Pack(const Run& run, const MicroBatch& rows);

// Takes the steps of one run, which must outlive it.
class Stepper {
 public:
  explicit Stepper(const Run& run);
  ~Stepper();

  // Forward, backward, check, clip, move `run.trained`. Errors: OUT_OF_RANGE if loss or gradients are not finite. The
  // weights have not been moved then, except with training.optimizer_in_backward, where gradients are only known one
  // after the other.
  absl::StatusOr<StepResult> Take(const Step& step, double learning_rate);

  AdamW& optimizer() { return optimizer_; }

 private:
  class InBackward;

  // The end of a step whose gradient norm is on another device: the weights move, unless it is not finite, before it is
  // read, so that the device need not wait for this program.
  absl::StatusOr<StepResult> MoveOnDevice(double learning_rate, double mean, StepResult result);

  const Run& run_;
  bool has_taken_a_step_ = false;
  AdamW optimizer_;
  std::unique_ptr<InBackward> in_backward_;  // null unless the job asks for it
};

}  // namespace luthier
