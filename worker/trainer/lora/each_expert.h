// Adapters of experts in the form that PEFT gives them with transformers 4, where each expert has linear layers of its
// own (mlp.experts.0.up_proj.lora_A). With transformers 5, and here, all experts of a layer are two parameters.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/checkpoint/tensor_table.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// The matrices that an expert has of a parameter of all, by the last parts of their names: of gate and up two.
std::vector<std::string> PartsOf(const LinearLayer& linear);

// Whether a file with these tensors has that form.
bool AdaptsEachExpert(const std::map<std::string, TensorView>& stored);

// Makes it one adapter of all experts of a layer, as PEFT does: gate and up, now one parameter, have twice the rank, so
// that each keeps an A of its own. `config` and `stored` become those of the other form; what `stored` borrows then is
// returned. Errors: INVALID_ARGUMENT naming a tensor that is missing or misshapen, or a field that has no such form.
absl::StatusOr<NamedTensors> JoinExperts(const ModelConfig& model, AdapterConfig& config,
                                         std::map<std::string, TensorView>& stored);

}  // namespace luthier
