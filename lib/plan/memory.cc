#include "lib/plan/memory.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/plan/adapter_plan.h"

namespace luthier {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// CUDA context and cuBLAS workspaces (not measured); on a CPU the program, LibTorch and its threads' memory.
constexpr int64_t kCudaWorkspace = 700 * kMiB;
constexpr int64_t kCpuWorkspace = 155 * kMiB;
// Holes in the heap, which keeps its pages, and what is too small to count. Measured on a CPU: docs/performance.md,
// "Estimates of memory and time".
constexpr double kFragmentation = 1.11;
constexpr double kExportFragmentation = 1.08;
// Layers whose numbers exist at a time where each is computed again: its own, and those that lie in holes between the
// inputs that are kept.
constexpr double kLayersComputedAgain = 2.65;
// In bf16, the fp32 numbers that attention needs in between leave holes among what is kept. Processors that multiply
// bf16 do not need them (4 to 7 % less than estimated), others some 8 % more: which kind a node has is not known
// here.
constexpr double kBf16Holes = 1.08;
// Gradients come while activations go: so much of them is beside the most activations, unless a micro-batch before has
// left them all.
constexpr double kGradientsBesideActivations = 0.5;
constexpr int64_t kHeadRows = 512;  // whose logits exist at a time (worker/trainer/ops/loss_head.cc)

// Numbers in the hidden layer of an MLP for one token: of the experts that it goes through, where that is more.
int64_t MlpWidth(const ModelConfig& c) {
  return c.experts ? std::max(c.intermediate_size, c.experts->per_token * c.experts->intermediate_size)
                   : c.intermediate_size;
}

// Norms of the residual stream or of what is added to it, and whether queries and keys have one, in a layer.
struct LayerNorms {
  int64_t hidden = 0;
  bool of_heads = false;
};

LayerNorms NormsOf(ModelConfig config) {
  config.num_layers = 1;  // the others have the same
  config.layers.resize(1);
  LayerNorms norms;
  for (const auto& [name, shape] : CheckpointTensors(config)) {
    if (!absl::StartsWith(name, "model.layers.0.") || !absl::EndsWith(name, "norm.weight")) continue;
    if (absl::EndsWith(name, "q_norm.weight")) {
      norms.of_heads = true;
    } else if (!absl::EndsWith(name, "k_norm.weight")) {
      ++norms.hidden;
    }
  }
  return norms;
}

// Numbers that one layer keeps of one token for the backward pass: what its norms, products, attention and gate were
// given, and what attention gave. The softmax's statistics and what an adapter keeps are too few to count.
int64_t SavedByLayer(const ModelConfig& c) {
  const LayerNorms norms = NormsOf(c);
  const int64_t attention =
      c.hidden_size + 2 * c.q_size() + 2 * c.kv_size() + (norms.of_heads ? c.q_size() + c.kv_size() : 0);
  return norms.hidden * c.hidden_size + attention + c.hidden_size + 3 * MlpWidth(c);
}

// Numbers of one token that exist while the backward pass goes through a layer, whichever half of it needs more.
int64_t UsedInLayer(const ModelConfig& c) {
  return 2 * c.hidden_size + std::max(3 * MlpWidth(c), 3 * c.q_size() + 2 * c.kv_size());
}

}  // namespace

MemoryInputs MemoryInputsOf(const Recipe& recipe, const ModelConfig& config) {
  MemoryInputs inputs;
  inputs.full = recipe.tuning == "full";
  if (!inputs.full) inputs.adapter_parameters = TrainedParameters(AdapterConfigOf(recipe.lora, config), config);
  inputs.bf16 = recipe.training.precision == "bf16";
  inputs.micro_batch_tokens = recipe.training.micro_batch_tokens.value_or(0);
  inputs.accumulates = recipe.training.batch_tokens.value_or(0) > inputs.micro_batch_tokens;
  inputs.activation_checkpointing = recipe.training.activation_checkpointing.value_or(false);
  inputs.optimizer_in_backward = recipe.training.optimizer_in_backward.value_or(false);
  return inputs;
}

MemoryEstimate EstimateMemory(const ModelFacts& model, const MemoryInputs& inputs) {
  const ModelConfig& c = model.config;
  const int64_t element = inputs.bf16 ? 2 : 4;
  const auto tokens = inputs.micro_batch_tokens;

  MemoryEstimate estimate;
  // What is trained is fp32 whatever is computed in.
  estimate.weights = model.parameters * (inputs.full ? 4 : element);
  const double gradients = inputs.optimizer_in_backward         ? 0
                           : !inputs.full || inputs.accumulates ? 1
                                                                : kGradientsBesideActivations;
  // Adam's two moments, and gradients; an adapter's own values besides.
  const double state_bytes = 8 + 4 * gradients + (inputs.full ? 0 : 4);
  estimate.training_state = static_cast<int64_t>(
      state_bytes * static_cast<double>(inputs.full ? model.parameters : inputs.adapter_parameters));
  const auto layer = static_cast<double>(SavedByLayer(c));
  const double saved = inputs.activation_checkpointing
                           ? static_cast<double>(c.num_layers * c.hidden_size) + kLayersComputedAgain * layer
                           : static_cast<double>(c.num_layers) * layer;
  const double kept = (inputs.bf16 && !inputs.cuda ? kBf16Holes : 1) * saved;
  const double a_token =
      kept + static_cast<double>(2 * c.hidden_size + UsedInLayer(c));  // embedded, and after the last norm
  estimate.activations = static_cast<int64_t>(static_cast<double>(tokens * element) * a_token);
  // Logits become their own gradient. That of the head is scaled into another one, and may be added to the embedding's.
  estimate.head =
      4 * std::min(inputs.trained_tokens.value_or(tokens), kHeadRows) * c.vocab_size * (c.logit_softcap > 0 ? 2 : 1);
  if (inputs.full && tokens > 0) estimate.head += 6 * c.vocab_size * c.hidden_size;
  estimate.workspace = inputs.cuda ? kCudaWorkspace : kCpuWorkspace;
  const int64_t sum = estimate.weights + estimate.training_state + estimate.activations + estimate.head;
  estimate.total = static_cast<int64_t>(kFragmentation * static_cast<double>(sum)) + estimate.workspace;
  return estimate;
}

MemoryEstimate EstimateExportMemory(const ModelFacts& model, bool merged, int64_t adapter_bytes) {
  // All is fp32. A merged model lies beside its base, and is read again beside both; of an adapter that are its
  // weights, the numbers of its file, and these read again as numbers and as weights.
  const int64_t copies_of_base = merged ? 3 : 1, copies_of_adapter = merged ? 1 : 4;
  MemoryEstimate estimate;
  estimate.weights = copies_of_base * 4 * model.parameters + copies_of_adapter * adapter_bytes;
  estimate.workspace = kCpuWorkspace;
  estimate.total =
      static_cast<int64_t>(kExportFragmentation * static_cast<double>(estimate.weights)) + estimate.workspace;
  return estimate;
}

int64_t LargestMicroBatch(const ModelFacts& model, MemoryInputs inputs, int64_t memory_bytes) {
  const auto fits = [&](int64_t tokens) {
    inputs.micro_batch_tokens = tokens;
    return EstimateMemory(model, inputs).total <= memory_bytes;
  };
  if (!fits(1)) return 0;
  int64_t fitting = 1, beyond = int64_t{1} << 30;  // the estimate grows with the tokens
  while (beyond - fitting > 1) {
    const int64_t middle = fitting + (beyond - fitting) / 2;
    (fits(middle) ? fitting : beyond) = middle;
  }
  return fitting;
}

}  // namespace luthier
