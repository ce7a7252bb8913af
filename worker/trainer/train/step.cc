#include "worker/trainer/train/step.h"

#include <torch/csrc/autograd/function_hook.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/plan/memory.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/train/heap.h"
#include "worker/trainer/train/tuning.h"

namespace luthier {
namespace {

AdamW MakeOptimizer(const Run& run) {
  AdamW::Options options{
      *run.training().beta1,        *run.training().beta2,     1e-8,
      *run.training().weight_decay, WithoutDecay(run.trained), LearningRateFactors(run.plan.recipe, run.trained)};
  return AdamW(run.trained, std::move(options));
}

int64_t TokensOf(const Run& run, const MicroBatch& rows) {
  int64_t tokens = 0;
  for (const int32_t row : rows) tokens += run.lengths[static_cast<size_t>(row)];
  return tokens;
}

// Of all its micro-batches, whichever rank they belong to.
void CountTokens(const Run& run, const Step& step, StepResult& result) {
  for (const MicroBatch& rows : step) {
    result.tokens += TokensOf(run, rows);
    for (const int32_t row : rows) result.trained_tokens += run.examples[static_cast<size_t>(row)].TrainedTokens();
  }
}

// Fewer bytes are touched in less than 0.1 s, and would count in the peak of a small model, which its first step
// reaches with other tensors.
constexpr int64_t kWorthFaultingIn = int64_t{256} << 20;

// Has the pages there that the step's largest micro-batch keeps its activations in. Three quarters of them, which it is
// sure to need: estimates are up to a tenth too high, and the heap has some room before.
void FaultInActivations(const Run& run, const Step& step) {
  MemoryInputs inputs = MemoryInputsOf(run.plan.recipe, run.base.facts.config);
  inputs.micro_batch_tokens = 0;
  for (const MicroBatch& rows : step)
    inputs.micro_batch_tokens = std::max(inputs.micro_batch_tokens, TokensOf(run, rows));
  const int64_t bytes = EstimateMemory(run.base.facts, inputs).activations / 4 * 3;
  if (bytes >= kWorthFaultingIn) FaultInHeap(bytes);
}

// Divides the losses of a micro-batch's tokens, which lie in the order of its rows, among the rows.
void AddRowLosses(const Run& run, const MicroBatch& rows, const std::vector<double>& losses, StepResult& result) {
  auto next = losses.begin();
  for (const int32_t row : rows) {
    const int64_t tokens = run.examples[static_cast<size_t>(row)].TrainedTokens();
    result.row_losses.emplace_back(row, std::accumulate(next, next + tokens, 0.0) / static_cast<double>(tokens));
    next += tokens;
  }
}

// Adds up what the ranks computed of a step: the loss, the losses of rows, and the gradients. A rank that had no
// micro-batch of it has none.
void SumOverRanks(const Run& run, StepResult& result) {
  if (run.ranks.size() == 1) return;
  std::vector<double> numbers = {result.loss};
  for (const auto& [row, loss] : result.row_losses) numbers.push_back(loss);
  const Tensor sums = at::tensor(numbers, at::kDouble);
  run.ranks.Sum({sums});
  const double* next = sums.const_data_ptr<double>();
  result.loss = *next++;
  for (auto& [row, loss] : result.row_losses) loss = *next++;
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : run.trained) {
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    gradients.push_back(parameter.grad());
  }
  run.ranks.Sum(gradients);
}

absl::Status CheckFinite(const Run& run, int64_t step, double loss, double grad_norm) {
  if (std::isfinite(loss) && std::isfinite(grad_norm)) return absl::OkStatus();
  // The first step computes with what the base was.
  const std::string remedy = step == 1
                                 ? std::string("check the weights of the base model and the rows of this step")
                                 : absl::StrCat("lower training.learning_rate (now ", *run.training().learning_rate,
                                                ") or check the rows of this step. The last checkpoint is intact");
  return absl::OutOfRangeError(
      absl::StrCat("step ", step, ": loss ", loss, ", gradient norm ", grad_norm, " are not finite; ", remedy));
}

}  // namespace

// Moves each parameter in the backward pass, as soon as its gradient is complete, and forgets the gradient: never are
// more than a few gradients in memory.
class Stepper::InBackward {
 public:
  explicit InBackward(AdamW& optimizer) : optimizer_(optimizer) {
    for (const auto& [name, parameter] : optimizer.parameters()) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(*this, name));
    }
  }
  ~InBackward() {
    for (const auto& [name, parameter] : optimizer_.parameters())
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }

  // From here on a complete gradient moves its parameter. Before that, micro-batches add theirs up.
  void Begin(double learning_rate, double gradient_scale) {
    learning_rate_ = learning_rate;
    gradient_scale_ = gradient_scale;
    squares_ = 0;
    moving_ = true;
    optimizer_.BeginStep();
  }

  // Moves what the last micro-batch gave no gradient. Returns the norm of all gradients, times the scale.
  double End() {
    for (const auto& [name, parameter] : optimizer_.parameters()) Move(name, parameter);
    moving_ = false;
    return std::sqrt(squares_) * gradient_scale_;
  }

 private:
  struct Hook : torch::autograd::PostAccumulateGradHook {
    Hook(InBackward& owner, std::string of) : in_backward(owner), name(std::move(of)) {}
    void operator()(const Tensor& parameter) override { in_backward.Move(name, parameter); }
    InBackward& in_backward;
    std::string name;
  };

  void Move(const std::string& name, const Tensor& parameter) {
    if (!moving_ || !parameter.grad().defined()) return;
    squares_ += std::pow(GlobalGradientNorm({{name, parameter}}), 2);
    if (std::isfinite(squares_)) optimizer_.StepParameter(name, learning_rate_, gradient_scale_);
    parameter.mutable_grad() = Tensor();
  }

  AdamW& optimizer_;
  bool moving_ = false;
  double learning_rate_ = 0, gradient_scale_ = 0, squares_ = 0;
};

PackedBatch Pack(const Run& run, const MicroBatch& rows) {
  std::vector<const Example*> examples;
  for (const int32_t row : rows) examples.push_back(&run.examples[static_cast<size_t>(row)]);
  return MakePackedBatch(examples, run.device);
}

Stepper::Stepper(const Run& run) : run_(run), optimizer_(MakeOptimizer(run)) {
  if (run.training().optimizer_in_backward.value_or(false)) in_backward_ = std::make_unique<InBackward>(optimizer_);
}

Stepper::~Stepper() = default;

absl::StatusOr<StepResult> Stepper::Take(const Step& step, double learning_rate) {
  if (!std::exchange(has_taken_a_step_, true) && run_.device.is_cpu()) FaultInActivations(run_, step);
  StepResult result;
  CountTokens(run_, step, result);
  // One factor for the whole step: the mean is over its tokens, however they were split into micro-batches and among
  // ranks.
  const double mean = 1 / static_cast<double>(std::max<int64_t>(result.trained_tokens, 1));
  const int64_t number = optimizer_.steps() + 1;
  for (size_t i = 0; i < step.size(); ++i) {
    if (i % static_cast<size_t>(run_.ranks.size()) != static_cast<size_t>(run_.ranks.rank())) {
      for (const int32_t row : step[i]) result.row_losses.emplace_back(row, 0);  // another rank's
      continue;
    }
    const PackedBatch batch = Pack(run_, step[i]);
    std::vector<double> losses;
    const Tensor loss = SumLoss(*run_.model, batch, &losses);
    AddRowLosses(run_, step[i], losses, result);
    result.loss += loss.item<double>() * mean;
    if (in_backward_ && i + 1 == step.size()) {
      LUTHIER_RETURN_IF_ERROR(CheckFinite(run_, number, result.loss, 0));
      in_backward_->Begin(learning_rate, mean);
    }
    loss.backward();
  }
  SumOverRanks(run_, result);
  if (!in_backward_ && !ops::HasKernels(run_.trained.begin()->second)) return MoveOnDevice(learning_rate, mean, result);
  result.grad_norm = in_backward_ ? in_backward_->End() : GlobalGradientNorm(run_.trained) * mean;
  LUTHIER_RETURN_IF_ERROR(CheckFinite(run_, number, result.loss, result.grad_norm));
  if (in_backward_) return result;
  optimizer_.Step(learning_rate, mean * ClipFactor(result.grad_norm, *run_.training().clip_norm));
  optimizer_.ZeroGradients();
  return result;
}

absl::StatusOr<StepResult> Stepper::MoveOnDevice(double learning_rate, double mean, StepResult result) {
  LUTHIER_RETURN_IF_ERROR(CheckFinite(run_, optimizer_.steps() + 1, result.loss, 0));
  const Tensor norm = GradientNorm(run_.trained) * mean;
  const Tensor clip_factor = (*run_.training().clip_norm / (norm + 1e-6)).clamp_max(1);
  optimizer_.Step(learning_rate, clip_factor * mean, norm.isfinite().logical_not().to(at::kFloat));
  optimizer_.ZeroGradients();
  result.grad_norm = norm.item<double>();
  LUTHIER_RETURN_IF_ERROR(CheckFinite(run_, optimizer_.steps(), result.loss, result.grad_norm));
  return result;
}

}  // namespace luthier
