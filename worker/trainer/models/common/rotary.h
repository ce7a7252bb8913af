// Frequencies of rotary position embedding and their tables.
#pragma once

#include "lib/checkpoint/model_config.h"
#include "worker/trainer/ops/ops.h"

namespace luthier {

// One inverse frequency a pair of head elements, fp32, [head_dim / 2]. Source: transformers modeling_rope_utils.py
// (default, linear, llama3).
Tensor InverseFrequencies(const RopeConfig& rope, int64_t head_dim);

// cos and sin of position · frequency, computed in fp32 whatever the model's format: bf16 cannot count beyond 256.
ops::RotaryTable MakeRotaryTable(const Tensor& positions_T, const Tensor& inverse_frequencies_P);

}  // namespace luthier
