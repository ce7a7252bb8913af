// Other names under which transformers finds the tensors of a checkpoint.
#pragma once

#include <map>
#include <string>

#include "lib/checkpoint/safetensors.h"

namespace luthier {

// The same tensors by the names that checkpoints of causal models have. A model that was saved without its head
// (AutoModel) leaves `model.` out; and where a state was saved as it is in memory, all experts of a layer are two
// tensors: gate_up_proj [E, 2I, D], whose rows are those of the gate and then those of up, and down_proj [E, D, I].
std::map<std::string, TensorView> ByCheckpointNames(const std::map<std::string, TensorView>& stored);

}  // namespace luthier
