#include "worker/trainer/train/adamw.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "worker/trainer/ops/kernels.h"
#include "worker/trainer/ops/parallel.h"

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

void AdamW::StepParameter(const std::string& name, double learning_rate, double gradient_scale) {
  Move({{name, parameters_.at(name)}}, learning_rate, gradient_scale);
}

void AdamW::Move(const NamedTensors& parameters, double learning_rate, double gradient_scale) {
  at::NoGradGuard no_grad;
  const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
  struct Moved {
    ops::kernels::AdamStep step;
    float *values, *m, *v;
  };
  std::vector<Moved> moved;
  for (const auto& [name, parameter] : parameters) {
    const auto factor = options_.rate_factors.find(name);
    const double rate = factor == options_.rate_factors.end() ? learning_rate : learning_rate * factor->second;
    const double decay = options_.no_decay.contains(name) ? 1 : 1 - rate * options_.weight_decay;
    moved.push_back({{static_cast<float>(rate / correction1), static_cast<float>(std::sqrt(correction2)),
                      static_cast<float>(options_.beta1), static_cast<float>(options_.beta2),
                      static_cast<float>(options_.eps), static_cast<float>(decay), static_cast<float>(gradient_scale)},
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

double GlobalGradientNorm(const NamedTensors& parameters) {
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
