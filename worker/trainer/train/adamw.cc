#include "worker/trainer/train/adamw.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace luthier {

AdamW::AdamW(NamedTensors parameters, Options options) : parameters_(std::move(parameters)), options_(std::move(options)) {
  for (const auto& [name, parameter] : parameters_) {
    first_moments_[name] = at::zeros_like(parameter);
    second_moments_[name] = at::zeros_like(parameter);
  }
}

void AdamW::Step(double learning_rate) {
  at::NoGradGuard no_grad;
  ++steps_;
  const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
  for (auto& [name, parameter] : parameters_) {
    const Tensor& gradient = parameter.grad();
    if (!gradient.defined()) continue;
    const auto factor = options_.rate_factors.find(name);
    const double rate = factor == options_.rate_factors.end() ? learning_rate : learning_rate * factor->second;
    Tensor& m = first_moments_[name];
    Tensor& v = second_moments_[name];
    if (options_.weight_decay != 0 && !options_.no_decay.contains(name)) parameter.mul_(1 - rate * options_.weight_decay);
    m.lerp_(gradient, 1 - options_.beta1);
    v.mul_(options_.beta2).addcmul_(gradient, gradient, 1 - options_.beta2);
    const Tensor denominator = v.sqrt().div_(std::sqrt(correction2)).add_(options_.eps);
    parameter.addcdiv_(m, denominator, -rate / correction1);
  }
}

void AdamW::ZeroGradients() {
  for (auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined()) parameter.mutable_grad().zero_();
  }
}

NamedTensors AdamW::State() const {
  NamedTensors state;
  for (const auto& [name, moment] : first_moments_) state["exp_avg." + name] = moment;
  for (const auto& [name, moment] : second_moments_) state["exp_avg_sq." + name] = moment;
  return state;
}

void AdamW::Restore(const NamedTensors& state, int64_t steps) {
  at::NoGradGuard no_grad;
  for (auto& [name, moment] : first_moments_) moment.copy_(state.at("exp_avg." + name));
  for (auto& [name, moment] : second_moments_) moment.copy_(state.at("exp_avg_sq." + name));
  steps_ = steps;
}

double GlobalGradientNorm(const NamedTensors& parameters) {
  double squares = 0;
  for (const auto& [name, parameter] : parameters) {
    // Per tensor in fp32, the sum in double: exact enough, and independent of how many tensors there are.
    if (parameter.grad().defined()) squares += std::pow(parameter.grad().norm().item<double>(), 2);
  }
  return std::sqrt(squares);
}

void ClipGradients(const NamedTensors& parameters, double norm, double clip) {
  ScaleGradients(parameters, std::min(1.0, clip / (norm + 1e-6)));
}

void ScaleGradients(const NamedTensors& parameters, double factor) {
  if (factor == 1) return;
  at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(factor);
  }
}

}  // namespace luthier
