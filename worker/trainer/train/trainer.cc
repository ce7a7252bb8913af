#include "worker/trainer/train/trainer.h"

#include <ATen/CPUGeneratorImpl.h>

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
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/device.h"
#include "worker/trainer/export/export.h"
#include "worker/trainer/export/template_file.h"
#include "worker/trainer/train/batch.h"
#include "worker/trainer/train/progress.h"
#include "worker/trainer/train/row_losses.h"
#include "worker/trainer/train/schedule.h"
#include "worker/trainer/train/selection.h"
#include "worker/trainer/train/step.h"
#include "worker/trainer/train/training_checkpoint.h"

namespace luthier {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Progress is told at most this often; a tiny model makes a hundred steps a second.
constexpr double kProgressSeconds = 0.25;
// At least this often a long evaluation says that it goes on: who listens takes a longer silence for a stall.
constexpr double kBusySeconds = 30;
// Answers of the test split that are kept for people to read.
constexpr size_t kShownExamples = 3;
// Rows with the highest losses: in the report, and in row_losses.jsonl, where more than a person can look at need not
// be.
constexpr size_t kShownRows = 5;
constexpr size_t kWrittenRows = 10'000;

// What all ranks do next, as the leading one decides.
enum class Turn : int64_t { kStep, kCheckpoint, kStop, kEnd };

// A rank draws for itself what it drops; the numbers of two must not be the same.
uint64_t SeedOfRank(int64_t seed, int rank) {
  return static_cast<uint64_t>(seed) + (static_cast<uint64_t>(rank) << 32);
}

// Trains one run. Members are what changes from step to step. All ranks take the steps; what else there is to do, the
// leading one does alone, and the others wait.
class Trainer {
 public:
  Trainer(Run& run, EventWriter& events, RunControl& control)
      : run_(run), events_(events), control_(control), stepper_(run), row_losses_(run.examples.size()) {}

  absl::Status Train() {
    LUTHIER_RETURN_IF_ERROR(Resume());
    ReportStart();
    last_report_ = Clock::now();
    while (true) {
      if (leads() && EvaluationIsDue()) LUTHIER_RETURN_IF_ERROR(EvaluateValidation());
      const auto turn = static_cast<Turn>(run_.ranks.Agree(static_cast<int64_t>(leads() ? NextTurn() : Turn::kStep)));
      if (turn == Turn::kStep) {
        LUTHIER_RETURN_IF_ERROR(OneStep());
        continue;
      }
      generator_states_ = run_.ranks.Gather(at::detail::getDefaultCPUGenerator().get_state());
      if (turn == Turn::kCheckpoint && leads()) LUTHIER_RETURN_IF_ERROR(Checkpoint());
      if (turn == Turn::kStop) return leads() ? Stop() : absl::OkStatus();
      if (turn == Turn::kEnd) return leads() ? Finish() : absl::OkStatus();
    }
  }

 private:
  bool leads() const { return run_.ranks.leads(); }

  // The leading rank alone has checkpoints, and tells the others what they need of one: so all go on from the same step
  // with the same bits, and no other node has to have its files.
  absl::Status Resume() {
    std::optional<TrainingState> state;
    if (leads()) {
      LUTHIER_ASSIGN_OR_RETURN(
          state, ReadNewestCheckpoint(run_.out_folder, run_.spec_hash, [&](std::string message) { Warn(message); }));
    }
    at::manual_seed(SeedOfRank(*run_.training().seed, run_.ranks.rank()));
    constexpr int64_t kNone = -1;
    const int64_t step = run_.ranks.Agree(state ? state->step : kNone);
    if (step == kNone) return absl::OkStatus();
    if (!state) state.emplace();
    TakeWeights(Shared(state->weights, run_.trained));
    stepper_.optimizer().Restore(Shared(state->optimizer, stepper_.optimizer().State()), step);
    TakeGeneratorState(SharedGeneratorStates(state->generator_states));
    step_ = resumed_step_ = checkpointed_step_ = step;
    tokens_ = state->tokens;
    loss_ = state->loss;
    earlier_seconds_ = state->seconds;
    evaluated_step_ = state->evaluated_step;
    selection_ = state->selection;
    row_losses_.Restore(state->row_losses);
    return absl::OkStatus();
  }

  // The leading rank's tensors, which have the names and shapes of `like` and are on the CPU.
  NamedTensors Shared(const NamedTensors& of_leader, const NamedTensors& like) const {
    NamedTensors shared;
    for (const auto& [name, tensor] : like) {
      shared[name] = run_.ranks.Share(leads() ? of_leader.at(name) : at::empty(tensor.sizes(), tensor.scalar_type()));
    }
    return shared;
  }

  // There may be as many as the run had ranks before.
  Tensor SharedGeneratorStates(const Tensor& of_leader) const {
    const int64_t size = run_.ranks.Agree(leads() ? of_leader.numel() : 0);
    return run_.ranks.Share(leads() ? of_leader : at::empty({size}, at::kByte));
  }

  // A rank that the run did not have before keeps its seed.
  void TakeGeneratorState(const Tensor& states) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const int64_t size = generator.get_state().numel(), begin = run_.ranks.rank() * size;
    if (begin + size <= states.numel()) generator.set_state(states.narrow(0, begin, size).clone());
  }

  void TakeWeights(const NamedTensors& weights) {
    at::NoGradGuard no_grad;
    for (auto& [name, tensor] : run_.trained) tensor.copy_(weights.at(name));
  }

  absl::Status OneStep() {
    const Clock::time_point start = Clock::now();
    learning_rate_ = LearningRate(
        {*run_.training().learning_rate, *run_.training().warmup_ratio, *run_.training().schedule, run_.total_steps},
        step_);
    LUTHIER_ASSIGN_OR_RETURN(const StepResult result, stepper_.Take(NextStep(), learning_rate_));
    ++step_;
    loss_ = result.loss;
    grad_norm_ = result.grad_norm;
    tokens_ += result.tokens;
    row_losses_.Add(result.row_losses);
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

  // At its interval and at the end. An evaluation that a stop cut short is still due when the run goes on.
  bool EvaluationIsDue() const {
    return step_ > evaluated_step_ && (step_ % *run_.plan.recipe.evaluation.every == 0 || step_ == run_.total_steps);
  }

  Turn NextTurn() {
    if (control_.stop) return Turn::kStop;
    if (CheckpointIsDue()) return Turn::kCheckpoint;
    return step_ == run_.total_steps || PatienceIsOver() ? Turn::kEnd : Turn::kStep;
  }

  bool CheckpointIsDue() {
    if (control_.checkpoint.exchange(false)) return true;
    return step_ > checkpointed_step_ && step_ < run_.total_steps && step_ % *run_.plan.recipe.checkpoint.every == 0;
  }

  bool PatienceIsOver() const {
    const std::optional<int64_t>& patience = run_.plan.recipe.evaluation.patience;
    return patience && selection_.without_gain() >= *patience;
  }

  bool PublishesBest() const {
    return *run_.plan.recipe.checkpoint.publish == "best" && FindSplit("validation") != nullptr;
  }

  // Of the weights that lie beside a checkpoint of now because they may become the result; 0: none.
  int64_t KeptBestStep() const {
    return PublishesBest() && HasBestWeights(run_.out_folder, selection_.best_step()) ? selection_.best_step() : 0;
  }

  // Of all processes of this run.
  double Seconds() const { return earlier_seconds_ + SecondsSince(started_); }

  double Epoch() const { return static_cast<double>(step_) / static_cast<double>(run_.steps_per_epoch); }

  void Warn(const std::string& message) { events_.Write("warning", {{"message", message}}); }

  void ReportStart() {
    int64_t base_parameters = 0, trainable = 0, trained_tokens = 0, tokens = 0;
    for (const auto& [name, tensor] : run_.base_weights) base_parameters += tensor.numel();
    for (const auto& [name, tensor] : run_.trained) trainable += tensor.numel();
    for (const Example& example : run_.examples) {
      trained_tokens += example.TrainedTokens();
      tokens += static_cast<int64_t>(example.ids.size());
    }
    trainable_parameters_ = trainable;
    for (const std::string& warning : run_.plan.warnings) Warn(warning);
    events_.Write("started", {{"protocol", kTrainerProtocol},
                              {"device", run_.device.str()},
                              {"devices", run_.ranks.size()},
                              {"precision", *run_.training().precision},
                              {"base_parameters", base_parameters},
                              {"trainable_parameters", trainable},
                              {"total_steps", run_.total_steps},
                              {"resumed_step", resumed_step_},
                              {"train_rows", run_.examples.size()},
                              {"train_tokens", tokens},
                              {"trained_tokens", trained_tokens},
                              {"dataset", ToJson(run_.files)},
                              {"resolved", ToJson(run_.plan.values)}});
  }

  void ReportProgress() {
    const bool first_or_last = step_ == resumed_step_ + 1 || step_ == run_.total_steps;
    if (!first_or_last && SecondsSince(last_report_) < kProgressSeconds) return;
    last_report_ = Clock::now();
    const double left =
        static_cast<double>(run_.total_steps - step_) * progress_.step_seconds() + EvaluationSecondsLeft();
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
                               {"peak_memory_bytes", PeakMemoryBytes(run_.device)}});
  }

  // Evaluations still to come, each row as long as one of the last evaluation.
  double EvaluationSecondsLeft() const {
    double rows = 0;
    for (const EvaluationSplit& split : run_.splits) {
      const int64_t every = *run_.plan.recipe.evaluation.every;
      const int64_t times = split.name == "test" ? 2 : 1 + (run_.total_steps - 1) / every - step_ / every;
      rows += static_cast<double>(times) * static_cast<double>(split.examples.size());
    }
    return rows * seconds_per_evaluated_row_;
  }

  const EvaluationSplit* FindSplit(const std::string& name) const {
    for (const EvaluationSplit& split : run_.splits) {
      if (split.name == name) return &split;
    }
    return nullptr;
  }

  // False if a stop cut it short, or if the dataset has no such split. OUT_OF_RANGE if the loss is not finite: nobody
  // can choose by it, and a model that has no losses is not published.
  absl::StatusOr<bool> EvaluateSplit(const std::string& name, const std::string& label, const DecoderModel& model) {
    const EvaluationSplit* split = FindSplit(name);
    if (split == nullptr) return false;
    const Clock::time_point start = Clock::now();
    EvaluationOptions options;
    options.task = ParseTaskType(run_.plan.recipe.task).value_or(TaskType::kChat);
    options.micro_batch_tokens = *run_.training().micro_batch_tokens;
    options.max_new_tokens = *run_.plan.recipe.evaluation.max_new_tokens;
    options.context = run_.base.facts.config.max_position_embeddings;
    options.generate = *run_.plan.recipe.evaluation.metric != "loss";
    options.max_examples = name == "test" ? kShownExamples : 0;
    Clock::time_point told = start;
    options.interrupted = [this, &told] {
      if (SecondsSince(told) > kBusySeconds) {
        events_.Write("busy", {{"step", step_}, {"with", "evaluation"}});
        told = Clock::now();
      }
      return control_.stop.load();
    };
    const std::optional<EvaluationResult> result = Evaluate(model, *split, run_.base.tokenizer, run_.stop_ids, options);
    if (!result) return false;
    if (!std::isfinite(result->loss)) {
      return absl::OutOfRangeError(absl::StrCat("step ", step_, ": the loss of the ", label, " model on the ", name,
                                                " part is ", result->loss, "; lower training.learning_rate (now ",
                                                *run_.training().learning_rate, ") or check the rows of that part"));
    }
    json fields = ToJson(*result);
    fields["step"] = step_;
    fields["split"] = name;
    fields["model"] = label;
    if (name == "validation") fields["best"] = selection_.Add(step_, *result, *run_.plan.recipe.evaluation.metric);
    seconds_per_evaluated_row_ = SecondsSince(start) / static_cast<double>(split->examples.size());
    evaluations_[name + "/" + label] = fields;
    events_.Write("evaluation", std::move(fields));
    return true;
  }

  absl::Status EvaluateValidation() {
    if (FindSplit("validation") == nullptr) {
      evaluated_step_ = step_;
      return absl::OkStatus();
    }
    LUTHIER_ASSIGN_OR_RETURN(const bool evaluated, EvaluateSplit("validation", "tuned", *run_.model));
    if (!evaluated) return absl::OkStatus();
    evaluated_step_ = step_;
    const bool best = selection_.best_step() == step_;
    // The last weights are in memory when they are wanted.
    if (!best || !PublishesBest() || step_ == run_.total_steps) return absl::OkStatus();
    return WriteBestWeights(run_.out_folder, step_, run_.trained);
  }

  // The score of the base model, for comparison. At the end, so that training starts at once and a resumed run needs no
  // memory of it.
  absl::Status EvaluateBase() {
    if (FindSplit("test") == nullptr) return absl::OkStatus();
    NamedTensors weights = run_.base_weights;
    if (!run_.lora()) {
      LUTHIER_ASSIGN_OR_RETURN(weights, ReadBaseWeights(run_, WeightUse::kFrozen));
    }
    LUTHIER_ASSIGN_OR_RETURN(const auto base, MakeModel(run_.base.facts.config, weights, {}));
    base->Configure(run_.compute());
    return EvaluateSplit("test", "base", *base).status();
  }

  absl::Status Checkpoint() {
    const Clock::time_point start = Clock::now();
    TrainingState state;
    state.step = step_;
    state.weights = run_.trained;
    state.optimizer = stepper_.optimizer().State();
    state.generator_states = generator_states_;
    state.spec_hash = run_.spec_hash;
    state.machine = run_.machine;
    state.tokens = tokens_;
    state.loss = loss_;
    state.seconds = Seconds();
    state.evaluated_step = evaluated_step_;
    state.selection = selection_;
    state.row_losses = row_losses_.State();
    LUTHIER_ASSIGN_OR_RETURN(const std::string path,
                             WriteCheckpoint(run_.out_folder, state, *run_.plan.recipe.checkpoint.keep));
    checkpointed_step_ = step_;
    events_.Write("checkpoint", {{"step", step_},
                                 {"path", path},
                                 {"best_step", KeptBestStep()},
                                 {"bytes", FolderBytes(path)},
                                 {"loss", loss_},
                                 {"seconds", SecondsSince(start)}});
    return absl::OkStatus();
  }

  absl::Status Stop() {
    if (checkpointed_step_ != step_) LUTHIER_RETURN_IF_ERROR(Checkpoint());
    events_.Write("stopped",
                  {{"step", step_}, {"path", CheckpointFolder(run_.out_folder, step_)}, {"best_step", KeptBestStep()}});
    return absl::OkStatus();
  }

  // Step whose weights become the result, which are then in `run_.trained`.
  int64_t TakePublishedWeights() {
    if (!PublishesBest() || selection_.best_step() == step_) return step_;
    const absl::StatusOr<NamedTensors> best = ReadBestWeights(run_.out_folder, selection_.best_step());
    if (!best.ok()) {
      Warn(absl::StrCat("the best weights, of step ", selection_.best_step(), ", cannot be read (",
                        best.status().message(), "); the last ones are published"));
      return step_;
    }
    TakeWeights(*best);
    return selection_.best_step();
  }

  std::string StopReason() const {
    if (step_ < run_.total_steps) return "NO_GAIN";
    return run_.training().max_steps && run_.total_steps == *run_.training().max_steps ? "MAX_STEPS" : "COMPLETED";
  }

  absl::StatusOr<std::string> Export() {
    events_.Write("busy", {{"step", step_}, {"with", "export"}});
    const PackedBatch probe = Pack(run_, ProbeRows(run_.lengths));
    const std::string artifact = run_.out_folder + (run_.lora() ? "/adapter" : "/model");
    if (run_.lora()) {
      LUTHIER_RETURN_IF_ERROR(
          ExportAdapter(run_.adapter, run_.base_weights, run_.base.facts.config, {*run_.model, probe}, artifact));
    } else {
      LUTHIER_RETURN_IF_ERROR(
          ExportModel({run_.base_weights, run_.base.facts.config_json, run_.spec.base_model, run_.stop_ids},
                      {*run_.model, probe}, artifact));
    }
    LUTHIER_RETURN_IF_ERROR(
        ExportTemplate(run_.base.own_template, run_.spec.recipe.template_date, run_.spec.base_model, artifact));
    return artifact;
  }

  absl::Status Finish() {
    LUTHIER_RETURN_IF_ERROR(EvaluateBase());
    if (control_.stop) return Stop();
    // What follows may replace the last weights, and a stop must still find them.
    if (PublishesBest() && selection_.best_step() != step_) LUTHIER_RETURN_IF_ERROR(Checkpoint());
    const int64_t published_step = TakePublishedWeights();
    LUTHIER_RETURN_IF_ERROR(EvaluateSplit("test", "tuned", *run_.model).status());
    if (control_.stop) return Stop();
    LUTHIER_ASSIGN_OR_RETURN(const std::string artifact, Export());
    json evaluations = json::array();
    for (const auto& [name, fields] : evaluations_) evaluations.push_back(fields);
    WriteLines(kRowLossesFile, row_losses_.Worst(kWrittenRows, run_.examples, run_.spec.train));
    json report = {
        {"step", step_},
        {"stop_reason", StopReason()},
        {"published_step", published_step},
        {"artifact",
         {{"kind", run_.lora() ? "adapter" : "model"}, {"path", artifact}, {"bytes", FolderBytes(artifact)}}},
        {"train_loss", loss_},
        {"seconds", Seconds()},
        {"step_seconds", progress_.mean_step_seconds()},
        {"peak_memory_bytes", PeakMemoryBytes(run_.device)},
        {"trainable_parameters", trainable_parameters_},
        {"dataset", ToJson(run_.files)},
        {"evaluations", evaluations},
        {"worst_rows", row_losses_.Worst(kShownRows, run_.examples, run_.spec.train)}};
    return FinishRun(run_.out_folder, std::move(report), events_);
  }

  // One JSON line each, into the run's folder. That they cannot be written is no reason to lose the result.
  void WriteLines(const std::string& name, const json& objects) {
    std::string lines;
    for (const json& object : objects) lines += object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    const absl::Status status = WriteFileDurably(run_.out_folder + "/" + name, lines);
    if (!status.ok()) Warn(std::string(status.message()));
  }

  Run& run_;
  EventWriter& events_;
  RunControl& control_;
  Stepper stepper_;
  Progress progress_;
  RowLosses row_losses_;
  Selection selection_;
  Tensor generator_states_;  // of all ranks, after the last step before a checkpoint, a stop or the end
  Clock::time_point started_ = Clock::now();
  Clock::time_point last_report_;
  double earlier_seconds_ = 0;
  std::vector<Step> epoch_plan_;
  int64_t planned_epoch_ = -1;
  int64_t step_ = 0;
  int64_t resumed_step_ = 0;
  int64_t evaluated_step_ = 0;
  int64_t checkpointed_step_ = 0;
  int64_t tokens_ = 0;
  int64_t trainable_parameters_ = 0;
  double loss_ = 0;
  double grad_norm_ = 0;
  double learning_rate_ = 0;
  double seconds_per_evaluated_row_ = 0;
  std::map<std::string, json> evaluations_;  // last of each split and model
};

}  // namespace

absl::Status Train(Run& run, EventWriter& events, RunControl& control) { return Trainer(run, events, control).Train(); }

}  // namespace luthier
