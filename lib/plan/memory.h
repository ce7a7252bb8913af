// How much memory a training run needs, from the model's shape alone; a node is given the job only if it fits.
#pragma once

#include <cstdint>
#include <optional>

#include "lib/checkpoint/model_facts.h"
#include "lib/plan/job_spec.h"

namespace luthier {

// What the estimate depends on besides the model.
struct MemoryInputs {
  bool full = false;               // full training instead of LoRA
  int64_t adapter_parameters = 0;  // LoRA only
  bool bf16 = false;               // else fp32
  bool cuda = false;
  int64_t micro_batch_tokens = 0;
  bool activation_checkpointing = false;
  bool optimizer_in_backward = false;
  bool accumulates = false;               // a step has several micro-batches
  std::optional<int64_t> trained_tokens;  // of the micro-batch; absent: all of them
};

// Of a device's memory; the rest is for what the estimates do not see.
inline constexpr double kUsableMemory = 0.92;
inline int64_t UsableBytes(int64_t memory_bytes) {
  return static_cast<int64_t>(kUsableMemory * static_cast<double>(memory_bytes));
}

// Bytes. The workspace and the other parts, these with some percent for holes in the heap, add up to `total`.
struct MemoryEstimate {
  int64_t weights = 0;
  int64_t training_state = 0;  // gradients, masters, Adam's moments of what is trained
  int64_t activations = 0;
  int64_t head = 0;       // logits and their gradient
  int64_t workspace = 0;  // the runtime itself
  int64_t total = 0;
};

// Of a settled recipe, with its micro-batches; on a CPU.
MemoryInputs MemoryInputsOf(const Recipe& recipe, const ModelConfig& config);

// Of training with one micro-batch in flight.
MemoryEstimate EstimateMemory(const ModelFacts& model, const MemoryInputs& inputs);

// Of writing an adapter with `adapter_bytes` of weights in another form, on a CPU.
MemoryEstimate EstimateExportMemory(const ModelFacts& model, bool merged, int64_t adapter_bytes);

// Largest micro-batch in tokens that keeps the estimate within `memory_bytes`; 0 if not even the weights fit.
int64_t LargestMicroBatch(const ModelFacts& model, MemoryInputs inputs, int64_t memory_bytes);

}  // namespace luthier
