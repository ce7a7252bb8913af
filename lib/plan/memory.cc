#include "lib/plan/memory.h"

#include <algorithm>
#include <cmath>

#include "lib/checkpoint/model_tensors.h"

namespace luthier {
namespace {

// Autograd keeps more than a hand-written backward needs: 1.5 to 2 times as much (litgpt's Llama 2 7B: 21.3 GB at 1,304
// tokens). Lower admits jobs that run out of memory, higher turns away jobs that fit.
constexpr double kAutogradFactor = 1.75;
constexpr double kFragmentation = 1.05;
constexpr int64_t kMiB = int64_t{1} << 20;
// CUDA context and cuBLAS workspaces; on a CPU LibTorch itself.
constexpr int64_t kCudaWorkspace = 700 * kMiB;
constexpr int64_t kCpuWorkspace = 250 * kMiB;

// Numbers in the hidden layer of an MLP for one token: of the experts that it goes through, where that is more.
int64_t MlpWidth(const ModelConfig& c) {
  return c.experts ? std::max(c.intermediate_size, c.experts->per_token * c.experts->intermediate_size) : c.intermediate_size;
}

// Bytes of saved activations for one token in one layer: inputs of norms and products, in the compute format, and the
// statistics of the softmax in fp32. Of a layer that is computed again only its input is saved.
double LayerActivationBytes(const ModelConfig& c, int64_t element) {
  const auto saved = static_cast<double>(2 * c.hidden_size + 2 * c.q_size() + 2 * c.kv_size() + 2 * MlpWidth(c));
  return static_cast<double>(element) * saved + 4.0 * static_cast<double>(c.num_heads);
}

}  // namespace

int64_t AdapterParameters(const ModelConfig& config, int64_t rank) {
  int64_t sizes = 0;
  for (const LinearLayer& linear : LinearLayers(config)) sizes += linear.in + linear.out;
  return rank * sizes;
}

MemoryEstimate EstimateMemory(const ModelFacts& model, const MemoryInputs& inputs) {
  const ModelConfig& c = model.config;
  const int64_t element = inputs.bf16 ? 2 : 4;
  // Beside the compute copy: gradient 4 + Adam's two moments 8, and an fp32 master 4 where the compute copy is bf16.
  const int64_t state_bytes = inputs.bf16 ? 16 : 12;
  const auto tokens = static_cast<double>(inputs.micro_batch_tokens);

  MemoryEstimate estimate;
  estimate.weights = model.parameters * element;
  // A gradient that is used up at once is never there with the others; the largest one is small beside the model.
  const int64_t full_bytes = inputs.optimizer_in_backward ? state_bytes - 4 : state_bytes;
  estimate.training_state = inputs.full ? model.parameters * full_bytes : inputs.adapter_parameters * (state_bytes + element);
  const double layer = LayerActivationBytes(c, element) * kAutogradFactor;
  const double inputs_of_layers = static_cast<double>(c.num_layers * c.hidden_size * element);
  const double layers = inputs.activation_checkpointing ? inputs_of_layers + layer : static_cast<double>(c.num_layers) * layer;
  const auto working_set = static_cast<double>(element * (3 * MlpWidth(c) + 6 * c.hidden_size) + 4 * c.q_size());
  estimate.activations = static_cast<int64_t>(tokens * (layers + working_set));
  // Logits in the compute format, in fp32 for the loss, and their gradient.
  estimate.head = static_cast<int64_t>(tokens * static_cast<double>(c.vocab_size * (element + 8)));
  estimate.workspace = inputs.cuda ? kCudaWorkspace : kCpuWorkspace;
  const int64_t sum = estimate.weights + estimate.training_state + estimate.activations + estimate.head + estimate.workspace;
  estimate.total = static_cast<int64_t>(kFragmentation * static_cast<double>(sum));
  return estimate;
}

int64_t LargestMicroBatch(const ModelFacts& model, MemoryInputs inputs, int64_t memory_bytes) {
  inputs.micro_batch_tokens = 0;
  const int64_t fixed = EstimateMemory(model, inputs).total;
  constexpr int64_t kProbe = 1000;
  inputs.micro_batch_tokens = kProbe;
  const double per_token = static_cast<double>(EstimateMemory(model, inputs).total - fixed) / kProbe;
  if (fixed >= memory_bytes || per_token <= 0) return 0;
  return static_cast<int64_t>(static_cast<double>(memory_bytes - fixed) / per_token);
}

}  // namespace luthier
