#include "worker/trainer/train/adamw.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/place.h"

namespace luthier {
namespace {

// Parameters are worked on in pieces of at most so many numbers: one parallel region serves an adapter's hundreds of
// small matrices as well as one large embedding, and fp32 sums over a piece stay exact enough.
constexpr int64_t kPiece = 16'384;

// A piece of one parameter.
struct Piece {
  size_t parameter;  // index
  int64_t begin, size;
};

// The gradients that there are, contiguous, with the pieces of all of them.
struct Gradients {
  std::vector<Tensor> tensors;  // undefined where a parameter has none
  std::vector<Piece> pieces;

  explicit Gradients(const NamedTensors& parameters) {
    for (const auto& [name, parameter] : parameters) {
      const Tensor& gradient = parameter.grad();
      tensors.push_back(gradient.defined() ? gradient.contiguous() : Tensor());
      if (!gradient.defined()) continue;
      for (int64_t begin = 0; begin < gradient.numel(); begin += kPiece) {
        pieces.push_back({tensors.size() - 1, begin, std::min(kPiece, gradient.numel() - begin)});
      }
    }
  }
  const float* data(const Piece& piece) const { return tensors[piece.parameter].const_data_ptr<float>() + piece.begin; }
};

double RateOf(const std::string& parameter, double learning_rate, const AdamW::Options& options) {
  const auto factor = options.rate_factors.find(parameter);
  return factor == options.rate_factors.end() ? learning_rate : learning_rate * factor->second;
}

}  // namespace

AdamW::AdamW(NamedTensors parameters, Options options)
    : parameters_(std::move(parameters)), options_(std::move(options)) {
  for (const auto& [name, parameter] : parameters_) {
    first_moments_[name] = at::zeros_like(parameter);
    second_moments_[name] = at::zeros_like(parameter);
  }
}

void AdamW::Step(double learning_rate, double gradient_scale) {
  BeginStep();
  Move(parameters_, learning_rate, gradient_scale);
}

void AdamW::Step(double learning_rate, const Tensor& gradient_scale, const Tensor& infinite) {
  BeginStep();
  MoveComposed(parameters_, learning_rate, gradient_scale, infinite);
}

void AdamW::StepParameter(const std::string& name, double learning_rate, double gradient_scale) {
  Move({{name, parameters_.at(name)}}, learning_rate, gradient_scale);
}

void AdamW::MoveComposed(const NamedTensors& parameters, double learning_rate, const Tensor& gradient_scale,
                         const Tensor& infinite) {
  at::NoGradGuard no_grad;
  struct Group {
    std::vector<Tensor> parameters, gradients, first_moments, second_moments, steps;
  };
  std::map<std::pair<double, double>, Group> groups;  // by learning rate and weight decay
  const Tensor steps = at::full({}, static_cast<double>(steps_), gradient_scale.options().dtype(at::kFloat));
  for (const auto& [name, parameter] : parameters) {
    if (!parameter.grad().defined()) continue;
    const double rate = RateOf(name, learning_rate, options_);
    Group& group = groups[{rate, options_.no_decay.contains(name) ? 0 : options_.weight_decay}];
    group.parameters.push_back(parameter);
    group.gradients.push_back(parameter.grad());
    group.first_moments.push_back(first_moments_.at(name));
    group.second_moments.push_back(second_moments_.at(name));
    group.steps.push_back(steps);
  }
  // It divides gradients by its scale.
  const Tensor divisor = gradient_scale.reciprocal().to(at::kFloat);
  for (const auto& [rate_and_decay, group] : groups) {
    at::_fused_adamw_(group.parameters, group.gradients, group.first_moments, group.second_moments, {}, group.steps,
                      rate_and_decay.first, options_.beta1, options_.beta2, rate_and_decay.second, options_.eps,
                      /*amsgrad=*/false, /*maximize=*/false, divisor, infinite);
  }
}

void AdamW::Move(const NamedTensors& parameters, double learning_rate, double gradient_scale) {
  if (parameters.empty()) return;
  if (const Tensor& first = parameters.begin()->second; !ops::HasKernels(first)) {
    const auto options = first.options().requires_grad(false);
    return MoveComposed(parameters, learning_rate, at::full({}, gradient_scale, options), at::zeros({}, options));
  }
  at::NoGradGuard no_grad;
  const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
  struct Moved {
    ops::kernels::AdamStep step;
    float *values, *m, *v;
  };
  std::vector<Moved> moved;
  for (const auto& [name, parameter] : parameters) {
    const double rate = RateOf(name, learning_rate, options_);
    const double decay = options_.no_decay.contains(name) ? 1 : 1 - rate * options_.weight_decay;
    moved.push_back({{static_cast<float>(rate / correction1), static_cast<float>(std::sqrt(correction2)),
                      options_.beta1, options_.beta2, static_cast<float>(options_.eps), static_cast<float>(decay),
                      static_cast<float>(gradient_scale)},
                     parameter.mutable_data_ptr<float>(),
                     first_moments_.at(name).mutable_data_ptr<float>(),
                     second_moments_.at(name).mutable_data_ptr<float>()});
  }
  const Gradients gradients(parameters);
  ops::ParallelItems(static_cast<int64_t>(gradients.pieces.size()), [&](int64_t item) {
    const Piece& piece = gradients.pieces[static_cast<size_t>(item)];
    const Moved& of = moved[piece.parameter];
    ops::kernels::AdamW(of.step, gradients.data(piece), piece.size, of.values + piece.begin, of.m + piece.begin,
                        of.v + piece.begin);
  });
}

void AdamW::ZeroGradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = Tensor();
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

Tensor GradientNorm(const NamedTensors& parameters) {
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return at::zeros({});
  return at::stack(at::_foreach_norm(gradients)).norm();
}

double GlobalGradientNorm(const NamedTensors& parameters) {
  if (!parameters.empty() && !ops::HasKernels(parameters.begin()->second))
    return GradientNorm(parameters).item<double>();
  const Gradients gradients(parameters);
  std::vector<double> squares(gradients.pieces.size());  // one for each piece: the sum must not depend on the threads
  ops::ParallelItems(static_cast<int64_t>(squares.size()), [&](int64_t item) {
    const Piece& piece = gradients.pieces[static_cast<size_t>(item)];
    squares[static_cast<size_t>(item)] = ops::kernels::SumOfSquares(gradients.data(piece), piece.size);
  });
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

double ClipFactor(double norm, double clip) { return std::min(1.0, clip / (norm + 1e-6)); }

}  // namespace luthier
