// How many operations training takes.
#pragma once

#include <cstdint>

#include "lib/checkpoint/model_config.h"

namespace luthier {

// Multiplications and additions of the method itself: 4 (LoRA) or 6 (full) a weight and token, 6 an adapter weight, and
// causal attention; the head counts for every token, of the experts those that it goes through. What is computed again
// is not counted. `squared_lengths`: the sum over documents.
double TrainingFlops(const ModelConfig& config, bool full, int64_t adapter_parameters, double tokens,
                     double squared_lengths);

}  // namespace luthier
