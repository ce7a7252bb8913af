#include "lib/plan/flops.h"

#include "lib/checkpoint/model_tensors.h"

namespace luthier {

double TrainingFlops(const ModelConfig& config, bool full, int64_t adapter_parameters, double tokens,
                     double squared_lengths) {
  int64_t matrices = config.vocab_size * config.hidden_size;
  for (const LinearLayer& linear : LinearLayers(config)) matrices += linear.in * linear.out;
  for (const LinearLayer& linear : ParameterLayers(config)) {
    matrices += (linear.experts > 0 ? config.experts->per_token : 1) * linear.in * linear.out;
  }
  const auto a_token = static_cast<double>((full ? 6 : 4) * matrices + 6 * adapter_parameters);
  return a_token * tokens + static_cast<double>(6 * config.q_size() * config.num_layers) * squared_lengths;
}

}  // namespace luthier
