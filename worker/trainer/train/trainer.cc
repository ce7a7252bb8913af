#include "worker/trainer/train/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/export/export.h"
#include "worker/trainer/train/adamw.h"
#include "worker/trainer/train/batch.h"
#include "worker/trainer/train/progress.h"
#include "worker/trainer/train/schedule.h"
#include "worker/trainer/train/step.h"
#include "worker/trainer/train/training_checkpoint.h"

namespace luthier {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Progress is told at most this often; a tiny model makes a hundred steps a second.
constexpr double kProgressSeconds = 0.25;
// Answers of the test split that are kept for people to read.
constexpr size_t kShownExamples = 3;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int64_t PeakMemoryBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// Trains one run. Members are what changes from step to step.
class Trainer {
 public:
  Trainer(Run& run, EventWriter& events, RunControl& control)
      : run_(run), events_(events), control_(control), optimizer_(MakeOptimizer(run)) {}

  absl::Status Train() {
    LUTHIER_RETURN_IF_ERROR(Resume());
    ReportStart();
    last_report_ = Clock::now();
    while (step_ < run_.total_steps) {
      if (control_.stop) return Stop();
      LUTHIER_RETURN_IF_ERROR(OneStep());
      if (DueEvery(run_.plan.recipe.evaluation.every)) EvaluateSplits("validation", "tuned", *run_.model);
      if (DueEvery(run_.plan.recipe.checkpoint.every) || control_.checkpoint.exchange(false)) {
        LUTHIER_RETURN_IF_ERROR(Checkpoint());
      }
    }
    return Finish();
  }

 private:
  absl::Status Resume() {
    LUTHIER_ASSIGN_OR_RETURN(const auto state,
                             ReadNewestCheckpoint(run_.out_folder, run_.spec_hash,
                                                  [&](std::string message) { events_.Write("warning", {{"message", message}}); }));
    if (!state) {
      at::manual_seed(static_cast<uint64_t>(*run_.training().seed));
      return absl::OkStatus();
    }
    at::NoGradGuard no_grad;
    for (auto& [name, tensor] : run_.trained) tensor.copy_(state->weights.at(name));
    optimizer_.Restore(state->optimizer, state->step);
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(state->generator_state);
    step_ = resumed_step_ = state->step;
    tokens_ = state->tokens;
    loss_ = state->loss;
    earlier_seconds_ = state->seconds;
    return absl::OkStatus();
  }

  // Forward, backward, finite check, step, report.
  absl::Status OneStep() {
    const Clock::time_point start = Clock::now();
    learning_rate_ = LearningRate({*run_.training().learning_rate, *run_.training().warmup_ratio, *run_.training().schedule,
                                   run_.total_steps}, step_);
    const StepResult result = ComputeGradients(run_, NextStep());
    loss_ = result.loss;
    grad_norm_ = result.grad_norm;
    if (!std::isfinite(loss_) || !std::isfinite(grad_norm_)) {
      return absl::OutOfRangeError(absl::StrCat("step ", step_ + 1, ": loss ", loss_, ", gradient norm ", grad_norm_,
                                                " are not finite; lower training.learning_rate (now ", *run_.training().learning_rate,
                                                ") or check the rows of this step. The last checkpoint is intact"));
    }
    ApplyGradients(run_, result, learning_rate_, optimizer_);
    ++step_;
    tokens_ += result.tokens;
    progress_.StepDone(SecondsSince(start), result.tokens);
    ReportProgress();
    return absl::OkStatus();
  }

  const Step& NextStep() {
    const int64_t epoch = step_ / run_.steps_per_epoch;
    if (epoch != planned_epoch_) {
      epoch_plan_ = PlanEpoch(run_.lengths, run_.batches, epoch);
      planned_epoch_ = epoch;
    }
    return epoch_plan_[static_cast<size_t>(step_ % run_.steps_per_epoch)];
  }

  bool DueEvery(const std::optional<int64_t>& every) const {
    return every && *every > 0 && step_ % *every == 0 && step_ < run_.total_steps;
  }

  // Of all processes of this run.
  double Seconds() const { return earlier_seconds_ + SecondsSince(started_); }

  double Epoch() const {
    return static_cast<double>(step_) / static_cast<double>(run_.steps_per_epoch);
  }

  void ReportStart() {
    int64_t base_parameters = 0, trainable = 0, trained_tokens = 0, tokens = 0;
    for (const auto& [name, tensor] : run_.base_weights) base_parameters += tensor.numel();
    for (const auto& [name, tensor] : run_.trained) trainable += tensor.numel();
    for (const Example& example : run_.examples) {
      trained_tokens += example.TrainedTokens();
      tokens += static_cast<int64_t>(example.ids.size());
    }
    trainable_parameters_ = trainable;
    for (const std::string& warning : run_.plan.warnings) events_.Write("warning", {{"message", warning}});
    events_.Write("started", {{"protocol", kTrainerProtocol},
                              {"device", "cpu"},
                              {"precision", *run_.training().precision},
                              {"base_parameters", base_parameters},
                              {"trainable_parameters", trainable},
                              {"total_steps", run_.total_steps},
                              {"resumed_step", resumed_step_},
                              {"train_rows", run_.examples.size()},
                              {"train_tokens", tokens},
                              {"trained_tokens", trained_tokens},
                              {"resolved", ToJson(run_.plan.values)}});
  }

  void ReportProgress() {
    const bool first_or_last = step_ == resumed_step_ + 1 || step_ == run_.total_steps;
    if (!first_or_last && SecondsSince(last_report_) < kProgressSeconds) return;
    last_report_ = Clock::now();
    const double left = static_cast<double>(run_.total_steps - step_) * progress_.step_seconds() + EvaluationSecondsLeft();
    events_.Write("progress", {{"step", step_},
                               {"total_steps", run_.total_steps},
                               {"epoch", Epoch()},
                               {"loss", loss_},
                               {"learning_rate", learning_rate_},
                               {"grad_norm", grad_norm_},
                               {"tokens", tokens_},
                               {"tokens_per_second", progress_.tokens_per_second()},
                               {"step_seconds", progress_.step_seconds()},
                               {"eta_seconds", left},
                               {"peak_memory_bytes", PeakMemoryBytes()}});
  }

  // Evaluations still to come, each row as long as one of the last evaluation.
  double EvaluationSecondsLeft() const {
    double rows = 0;
    for (const EvaluationSplit& split : run_.splits) {
      const int64_t every = run_.plan.recipe.evaluation.every.value_or(run_.total_steps);
      const int64_t times = split.name == "test" ? 2 : 1 + (run_.total_steps - 1) / every - step_ / every;
      rows += static_cast<double>(times) * static_cast<double>(split.examples.size());
    }
    return rows * seconds_per_evaluated_row_;
  }

  // The score of the base model, for comparison. At the end, so that training starts at once and a resumed run needs no memory
  // of it. Returns whether it was done, and not cut short by a stop.
  absl::StatusOr<bool> EvaluateBase() {
    const bool wanted = std::any_of(run_.splits.begin(), run_.splits.end(), [](const auto& split) { return split.name == "test"; });
    if (!wanted) return true;
    NamedTensors weights = run_.base_weights;
    if (!run_.lora()) {
      LUTHIER_ASSIGN_OR_RETURN(weights, ReadBaseWeights(run_, WeightUse::kFrozen));
    }
    LUTHIER_ASSIGN_OR_RETURN(const auto base, MakeModel(run_.base.facts.config, weights, {}));
    return EvaluateSplits("test", "base", *base);
  }

  // Evaluates the split of that name, if the dataset has it. Returns whether that was done, and not cut short by a stop.
  bool EvaluateSplits(const std::string& name, const std::string& label, const DecoderModel& model) {
    for (const EvaluationSplit& split : run_.splits) {
      if (split.name != name) continue;
      const Clock::time_point start = Clock::now();
      EvaluationOptions options;
      options.task = ParseTaskType(run_.plan.recipe.task).value_or(TaskType::kChat);
      options.micro_batch_tokens = *run_.training().micro_batch_tokens;
      options.max_new_tokens = *run_.plan.recipe.evaluation.max_new_tokens;
      options.generate = *run_.plan.recipe.evaluation.metric != "loss";
      options.max_examples = name == "test" ? kShownExamples : 0;
      options.context = run_.base.facts.config.max_position_embeddings;
      options.interrupted = [this] { return control_.stop.load(); };
      const std::optional<EvaluationResult> result = Evaluate(model, split, run_.base.tokenizer, run_.stop_ids, options);
      if (!result) return false;
      json fields = ToJson(*result);
      fields["step"] = step_;
      fields["split"] = name;
      fields["model"] = label;
      seconds_per_evaluated_row_ = SecondsSince(start) / static_cast<double>(split.examples.size());
      evaluations_[name + "/" + label] = fields;
      events_.Write("evaluation", std::move(fields));
    }
    return true;
  }

  absl::Status Checkpoint() {
    const Clock::time_point start = Clock::now();
    TrainingState state;
    state.step = step_;
    state.weights = run_.trained;
    state.optimizer = optimizer_.State();
    state.generator_state = at::detail::getDefaultCPUGenerator().get_state();
    state.spec_hash = run_.spec_hash;
    state.tokens = tokens_;
    state.loss = loss_;
    state.seconds = Seconds();
    LUTHIER_ASSIGN_OR_RETURN(checkpoint_path_, WriteCheckpoint(run_.out_folder, state, *run_.plan.recipe.checkpoint.keep));
    events_.Write("checkpoint", {{"step", step_}, {"path", checkpoint_path_}, {"bytes", FolderBytes(checkpoint_path_)}, {"loss", loss_},
                                 {"seconds", SecondsSince(start)}});
    return absl::OkStatus();
  }

  absl::Status Stop() {
    LUTHIER_RETURN_IF_ERROR(Checkpoint());
    events_.Write("stopped", {{"step", step_}, {"path", checkpoint_path_}});
    return absl::OkStatus();
  }

  absl::Status Finish() {
    // What a stop cuts short is evaluated when the run goes on, from a checkpoint of its last step.
    if (!EvaluateSplits("validation", "tuned", *run_.model)) return Stop();
    LUTHIER_ASSIGN_OR_RETURN(const bool compared, EvaluateBase());
    if (!compared || !EvaluateSplits("test", "tuned", *run_.model)) return Stop();
    // The shortest rows suffice to tell whether the files compute what was trained.
    const PackedBatch probe = Pack(run_, {static_cast<int32_t>(std::min_element(run_.lengths.begin(), run_.lengths.end()) - run_.lengths.begin())});
    const std::string artifact = run_.out_folder + (run_.lora() ? "/adapter" : "/model");
    if (run_.lora()) {
      LUTHIER_RETURN_IF_ERROR(ExportAdapter(run_.adapter, run_.base_weights, run_.base.facts.config, {*run_.model, probe}, artifact));
    } else {
      LUTHIER_RETURN_IF_ERROR(ExportModel({run_.base_weights, run_.base.facts.config_json, run_.spec.base_model, run_.stop_ids},
                                          {*run_.model, probe}, artifact));
    }
    json evaluations = json::array();
    for (const auto& [name, fields] : evaluations_) evaluations.push_back(fields);
    const bool cut_short = run_.training().max_steps && run_.total_steps == *run_.training().max_steps;
    json report = {{"step", step_},
                   {"stop_reason", cut_short ? "MAX_STEPS" : "COMPLETED"},
                   {"artifact", {{"kind", run_.lora() ? "adapter" : "model"}, {"path", artifact}, {"bytes", FolderBytes(artifact)}}},
                   {"train_loss", loss_},
                   {"seconds", Seconds()},
                   {"step_seconds", progress_.mean_step_seconds()},
                   {"peak_memory_bytes", PeakMemoryBytes()},
                   {"trainable_parameters", trainable_parameters_},
                   {"evaluations", evaluations}};
    LUTHIER_RETURN_IF_ERROR(WriteFileDurably(run_.out_folder + "/report.json", report.dump(2, ' ', false, json::error_handler_t::replace) + "\n"));
    events_.Write("finished", std::move(report));
    return absl::OkStatus();
  }

  Run& run_;
  EventWriter& events_;
  RunControl& control_;
  AdamW optimizer_;
  Progress progress_;
  Clock::time_point started_ = Clock::now();
  Clock::time_point last_report_;
  double earlier_seconds_ = 0;
  std::vector<Step> epoch_plan_;
  int64_t planned_epoch_ = -1;
  int64_t step_ = 0;
  int64_t resumed_step_ = 0;
  int64_t tokens_ = 0;
  int64_t trainable_parameters_ = 0;
  double loss_ = 0;
  double grad_norm_ = 0;
  double learning_rate_ = 0;
  std::string checkpoint_path_;
  double seconds_per_evaluated_row_ = 0;
  std::map<std::string, json> evaluations_;  // last of each split and model
};

}  // namespace

absl::Status Train(Run& run, EventWriter& events, RunControl& control) { return Trainer(run, events, control).Train(); }

}  // namespace luthier
