// What training, evaluation and generation need of a model, and the list of families.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/checkpoint/model_config.h"
#include "worker/trainer/models/common/attention.h"
#include "worker/trainer/models/common/linear.h"
#include "worker/trainer/models/common/output_head.h"
#include "worker/trainer/torch.h"

namespace luthier {

// Tensors by the names of the checkpoint file.
using NamedTensors = std::map<std::string, Tensor>;

// The adapters of a model: for each linear layer by module name ("model.layers.0.mlp.up_proj"), one entry an adapter.
using LoraLayers = std::map<std::string, std::vector<LoraWeights>>;

// How a model computes, whatever its weights are.
struct ComputeOptions {
  std::optional<at::ScalarType> type;  // of activations and products; default: that of the embedding
  bool recompute_layers = false;       // keep only the input of each layer for the backward pass
};

// A causal decoder over packed tokens. It shares its weights' tensors with whoever built it.
class DecoderModel {
 public:
  virtual ~DecoderModel() = default;

  // tokens_T, positions_T and lengths_T (int64: id, position in its document, length of its document) → hidden states
  // after the last norm, [T, D].
  virtual Tensor Forward(const Tensor& tokens_T, const Tensor& positions_T, const Tensor& lengths_T,
                         const std::shared_ptr<Attention>& attention, const AdapterSlices& slices) const = 0;

  // Before the first Forward.
  void Configure(const ComputeOptions& options) { compute_ = options; }
  const ComputeOptions& compute() const { return compute_; }

  virtual const OutputHead& head() const = 0;
  virtual at::Device device() const = 0;

  // Documents longer than this are rotated by other frequencies than shorter ones (longrope, dynamic); 0: all alike.
  // What was cached of a document that grows beyond it must be computed again.
  virtual int64_t rotary_switch_length() const = 0;

 protected:
  ComputeOptions compute_;
};

// Builds the family that `config.model_type` names around `weights` (every tensor of the checkpoint, of one format and
// device). Errors: INVALID_ARGUMENT for a family that is not in the list.
absl::StatusOr<std::unique_ptr<DecoderModel>> MakeModel(const ModelConfig& config, const NamedTensors& weights,
                                                        const LoraLayers& lora);

}  // namespace luthier
