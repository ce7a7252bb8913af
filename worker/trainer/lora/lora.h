// An adapter: the A and B matrices of every layer that it targets, by construction beside frozen weights.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_config.h"
#include "lib/checkpoint/tensor_table.h"
#include "worker/trainer/models/model.h"

namespace luthier {

// What PEFT's names begin with, in front of the base's.
inline constexpr char kPeftPrefix[] = "base_model.model.";
// What those of DoRA's lengths end with.
inline constexpr char kMagnitude[] = ".lora_magnitude_vector";

// Tensors by PEFT's names:
//   base_model.model.model.layers.0.mlp.up_proj.lora_A.weight [R, I], ….lora_B.weight [O, R]
//   base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector [O]: with DoRA
//   base_model.model.model.embed_tokens.lora_embedding_A [R, V], ….lora_embedding_B [D, R]
//   base_model.model.model.layers.0.mlp.experts.lora_A.weight [E · R, I], ….lora_B.weight [O, R · E]: of E experts;
//       rows of A by expert, columns of B by rank; ….mlp.experts.base_layer.… where StoredUnder says so
//   base_model.model.lm_head.weight: a module that is trained whole (modules_to_save)
struct Adapter {
  AdapterConfig config;
  NamedTensors tensors;
};

// The name of a targeted layer's `which`: A or B.
std::string LoraName(const AdapterConfig& config, const LinearLayer& targeted, absl::string_view which);

// A fresh adapter as PEFT initialises it: A uniform in ±1/sqrt(in) (kaiming with a = sqrt 5), B zero, magnitudes the
// lengths of the base's rows, whole modules copies of the base's; of an embedding A is zero and B normal. It computes
// what the base does. Errors: INVALID_ARGUMENT if a name of `config` matches nothing in the model.
absl::StatusOr<Adapter> MakeAdapter(const AdapterConfig& config, const ModelConfig& model, const NamedTensors& base,
                                    uint64_t seed);

// Reads a PEFT folder in fp32; adapters of single experts (transformers 4) as one of all of them. Where PEFT stores the
// base's head and embedding beside the adapter, they are left out if they equal those of `base`. Errors:
// INVALID_ARGUMENT listing every missing, unexpected or misshapen tensor.
absl::StatusOr<Adapter> ReadAdapter(const std::string& folder, const ModelConfig& model,
                                    const NamedTensors* base = nullptr);

// Writes adapter_config.json and adapter_model.safetensors (fp32, contiguous) durably into an existing folder.
absl::Status WriteAdapter(const Adapter& adapter, const std::string& folder,
                          const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

// The base with one or more adapters, which tokens choose by number (AdapterSlices). Tensors are shared, not copied.
// Errors: INVALID_ARGUMENT if several adapters are given and one of them replaces whole modules, which then no other
// could use, or adapts experts, before which tokens are put into another order.
absl::StatusOr<std::unique_ptr<DecoderModel>> MakeTunedModel(const ModelConfig& model, const NamedTensors& base,
                                                             const std::vector<const Adapter*>& adapters);

// A model of its own that computes what base and adapter do.
struct MergedModel {
  NamedTensors weights;
  // The base ties its head to its embedding and the adapter moved only one of them, so that now there are two.
  bool untied = false;
};

// W + scale · B·A for every targeted layer and expert, with DoRA brought to its length, computed in fp32; tensors that
// the adapter does not touch are shared with `base`. Errors: OUT_OF_RANGE naming a weight that is not finite.
absl::StatusOr<MergedModel> MergeAdapter(const ModelConfig& model, const NamedTensors& base, const Adapter& adapter);

// Tensors are shared. Errors: as MakeModel.
absl::StatusOr<std::unique_ptr<DecoderModel>> MakeMergedModel(const ModelConfig& model, const MergedModel& merged);

}  // namespace luthier
