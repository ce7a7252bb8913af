// AdamW with decoupled weight decay (arXiv:1711.05101), as torch.optim.AdamW computes it, and clipping by global norm.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "worker/trainer/models/model.h"

namespace luthier {

// Optimizer state: first and second moments in fp32, by parameter name. Part of every checkpoint.
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.95;
    double eps = 1e-8;
    double weight_decay = 0;
    std::set<std::string> no_decay;              // parameters without weight decay
    std::map<std::string, double> rate_factors;  // on the learning rate of single parameters; 1 where absent
  };

  AdamW(NamedTensors parameters, Options options);

  // One step with the gradients times `gradient_scale`, which saves a pass over them: of the mean over tokens, of
  // clipping.
  void Step(double learning_rate, double gradient_scale = 1);
  // The same with what is on the parameters' device, so that nobody waits for it: with `infinite` 1 nothing moves.
  void Step(double learning_rate, const Tensor& gradient_scale, const Tensor& infinite);
  // The same in parts, for parameters that are moved one after another: a step begins, then each parameter takes it.
  void BeginStep() { ++steps_; }
  void StepParameter(const std::string& name, double learning_rate, double gradient_scale);
  // Forgets the gradients.
  void ZeroGradients();

  int64_t steps() const { return steps_; }

  // The moments, as "exp_avg.<name>" and "exp_avg_sq.<name>"; shared, not copied.
  NamedTensors State() const;
  // Takes over a state of the same parameters, as if `steps` steps were done.
  void Restore(const NamedTensors& state, int64_t steps);

  const NamedTensors& parameters() const { return parameters_; }

 private:
  // Takes the step that has begun for these parameters, all in one parallel region.
  void Move(const NamedTensors& parameters, double learning_rate, double gradient_scale);
  // The same out of LibTorch's operations.
  void MoveComposed(const NamedTensors& parameters, double learning_rate, const Tensor& gradient_scale,
                    const Tensor& infinite);

  NamedTensors parameters_;
  Options options_;
  NamedTensors first_moments_;
  NamedTensors second_moments_;
  int64_t steps_ = 0;
};

// sqrt of the sum of squares over all gradients, as a number of their device.
Tensor GradientNorm(const NamedTensors& parameters);
// The same as a number of this program.
double GlobalGradientNorm(const NamedTensors& parameters);

// What clipping multiplies gradients of that norm by: min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_.
double ClipFactor(double norm, double clip);

}  // namespace luthier
