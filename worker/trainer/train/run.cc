#include "worker/trainer/train/run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/dataset/batches.h"
#include "lib/dataset/validate.h"
#include "lib/plan/resolve.h"
#include "lib/text/chat_template.h"
#include "lib/text/tokenizer.h"
#include "worker/trainer/export/export.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/adamw.h"
#include "worker/trainer/train/batch.h"
#include "worker/trainer/train/evaluation.h"
#include "worker/trainer/train/schedule.h"
#include "worker/trainer/train/training_checkpoint.h"
#include "worker/trainer/train/tuning.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Steps over which speed is averaged for progress: long enough to be steady, short enough to follow a change.
constexpr size_t kSpeedWindow = 20;
// Progress is told at most this often; a tiny model makes a hundred steps a second.
constexpr double kProgressSeconds = 0.25;
// Answers of the test split that are kept for people to read.
constexpr size_t kShownExamples = 3;

constexpr char kUserDataPayload[] = "luthier/user-data";

// Marks an error as the fault of the rows.
absl::Status UserData(absl::Status status) {
  status.SetPayload(kUserDataPayload, absl::Cord("1"));
  return status;
}

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int64_t PeakMemoryBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

EncodeOptions EncodingOf(const TrainingSpec& training) {
  EncodeOptions options;
  options.max_length = *training.max_length;
  if (*training.too_long == "truncate") options.too_long = EncodeOptions::TooLong::kTruncate;
  if (*training.loss_on == "all") options.loss_on = EncodeOptions::LossOn::kAll;
  if (*training.loss_on == "completion") options.loss_on = EncodeOptions::LossOn::kCompletion;
  return options;
}

// Base model and text, opened.
struct Base {
  ModelFacts facts;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  const ChatTemplate* template_or_null() const { return chat_template ? &*chat_template : nullptr; }
};

absl::StatusOr<Base> OpenBase(const TrainerSpec& spec) {
  LUTHIER_ASSIGN_OR_RETURN(ModelFacts facts, spec.init == "random" ? ReadModelFactsWithoutWeights(spec.base_model)
                                                                   : ReadModelFacts(spec.base_model));
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(spec.base_model));
  Base base{std::move(facts), std::move(tokenizer), std::nullopt};
  absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Load(spec.base_model);
  if (chat_template.ok()) {
    base.chat_template = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return base;
}

// Counts the training rows as they will be encoded; the plan depends on them.
absl::StatusOr<DatasetFacts> CountRows(const TrainerSpec& spec, const Base& base) {
  EncodeOptions options;  // no limit yet: max_length may have to be chosen from what is found
  if (spec.recipe.training.loss_on == "all") options.loss_on = EncodeOptions::LossOn::kAll;
  const RowEncoder encoder(base.tokenizer, base.template_or_null(), options);
  ValidationReport total;
  for (const std::string& path : spec.train) {
    LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report, Validate(path, encoder));
    total.Merge(report);
  }
  if (absl::Status status = total.ToStatus(); !status.ok()) return UserData(status);
  DatasetFacts facts{total.rows, total.tokens, total.trained_tokens, total.longest_row_tokens, ""};
  if (total.chat_rows == total.rows) facts.format = "messages";
  if (total.completion_rows == total.rows) facts.format = "prompt_completion";
  if (total.text_rows == total.rows) facts.format = "text";
  return facts;
}

// Everything a run works on. Built once, in the order of the fields.
struct Run {
  const TrainerSpec& spec;
  std::string out_folder;
  Base base;
  ResolvedSpec plan;
  std::vector<Example> examples;
  std::vector<int32_t> lengths;
  std::vector<EvaluationSplit> splits;
  std::vector<int32_t> stop_ids;
  NamedTensors base_weights;
  Adapter adapter;           // empty for full training
  NamedTensors trained;      // what the optimizer moves
  std::unique_ptr<DecoderModel> model;
  BatchOptions batches;
  int64_t total_steps = 0;
  std::string spec_hash;

  bool lora() const { return plan.recipe.tuning == "lora"; }
  const TrainingSpec& training() const { return plan.recipe.training; }
};

absl::Status LoadRowsOf(Run& run) {
  const RowEncoder encoder(run.base.tokenizer, run.base.template_or_null(), EncodingOf(run.training()));
  absl::StatusOr<LoadedExamples> loaded = LoadExamples(run.spec.train, encoder);
  if (!loaded.ok()) return UserData(loaded.status());
  run.examples = std::move(loaded->examples);
  for (const Example& example : run.examples) run.lengths.push_back(static_cast<int32_t>(example.ids.size()));
  run.stop_ids = encoder.stop_ids();
  for (const auto& [name, path] : {std::pair("validation", run.spec.validation), std::pair("test", run.spec.test)}) {
    if (path.empty()) continue;
    absl::StatusOr<EvaluationSplit> split = LoadSplit(name, path, encoder, *run.plan.recipe.evaluation.max_rows);
    if (!split.ok()) return UserData(split.status());
    run.splits.push_back(*std::move(split));
  }
  return absl::OkStatus();
}

absl::Status BuildModel(Run& run) {
  const ModelConfig& config = run.base.facts.config;
  const auto seed = static_cast<uint64_t>(*run.training().seed);
  if (run.spec.init == "random") {
    run.base_weights = RandomWeights(config, seed);
  } else {
    LUTHIER_ASSIGN_OR_RETURN(run.base_weights, LoadWeights(run.spec.base_model, config, at::kFloat,
                                                           run.lora() ? WeightUse::kFrozen : WeightUse::kTrained));
  }
  LUTHIER_ASSIGN_OR_RETURN(Tuning tuning, MakeTuning(run.plan.recipe, config, run.base_weights, run.spec.base_model_name, run.spec.start_adapter));
  run.adapter = std::move(tuning.adapter);
  run.trained = std::move(tuning.trained);
  run.model = std::move(tuning.model);
  return absl::OkStatus();
}

void PlanSteps(Run& run) {
  const TrainingSpec& training = run.training();
  run.batches.batch_tokens = *training.batch_tokens;
  run.batches.micro_batch_tokens = *training.micro_batch_tokens;
  run.batches.seed = static_cast<uint64_t>(*training.seed);
  if (*training.order == "file") run.batches.order = BatchOptions::Order::kFile;
  const int64_t steps_per_epoch = StepsPerEpoch(run.lengths, run.batches);
  run.total_steps = std::max<int64_t>(1, std::llround(*training.epochs * static_cast<double>(steps_per_epoch)));
  if (training.max_steps) run.total_steps = std::min(run.total_steps, *training.max_steps);
}

// What a resumed run must share with the one that wrote the checkpoint: all that decides the weights.
std::string HashOf(const Run& run) {
  json identity = ToJson(run.plan.recipe);
  identity.erase("evaluation");
  identity.erase("checkpoint");
  identity.erase("resources");
  identity["init"] = run.spec.init;
  identity["start_adapter"] = run.spec.start_adapter;
  identity["weight_bytes"] = run.base.facts.weight_bytes;
  identity["config"] = run.base.facts.config_json;
  identity["lengths"] = run.lengths;
  Sha256 hash;
  hash.Update(identity.dump());
  for (const Example& example : run.examples) {
    hash.Update(std::as_bytes(std::span(example.ids)));
    hash.Update(std::as_bytes(std::span(example.trained)));
  }
  return hash.FinishHex();
}

// What a spec may ask for in general and this trainer cannot do: said, never ignored.
absl::Status CheckSupported(const Recipe& recipe) {
  if (*recipe.training.precision != "fp32") {
    return absl::InvalidArgumentError(absl::StrCat("training.precision: ", *recipe.training.precision,
                                                   " is not supported by this trainer yet; give fp32 or auto"));
  }
  if (recipe.resources.devices.value_or(1) != 1) {
    return absl::InvalidArgumentError(absl::StrCat("resources.devices: ", *recipe.resources.devices,
                                                   " is not supported by this trainer yet; give 1"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Run>> Prepare(const TrainerSpec& spec, const std::string& out_folder) {
  LUTHIER_ASSIGN_OR_RETURN(Base base, OpenBase(spec));
  LUTHIER_ASSIGN_OR_RETURN(const DatasetFacts rows, CountRows(spec, base));
  DeviceFacts device;
  device.threads = at::get_num_threads();
  LUTHIER_ASSIGN_OR_RETURN(ResolvedSpec plan, Resolve(spec.recipe, base.facts, rows, device));
  LUTHIER_RETURN_IF_ERROR(CheckSupported(plan.recipe));
  auto run = std::make_unique<Run>(Run{spec, out_folder, std::move(base), std::move(plan)});
  LUTHIER_RETURN_IF_ERROR(LoadRowsOf(*run));
  LUTHIER_RETURN_IF_ERROR(BuildModel(*run));
  PlanSteps(*run);
  run->spec_hash = HashOf(*run);
  return run;
}

// Speed and time left, from the last steps.
class Progress {
 public:
  void StepDone(double seconds, int64_t tokens) {
    window_.push_back({seconds, tokens});
    if (window_.size() > kSpeedWindow) window_.pop_front();
    total_seconds_ += seconds;
    ++steps_;
  }
  double step_seconds() const {
    double seconds = 0;
    for (const auto& [step_seconds, tokens] : window_) seconds += step_seconds;
    return seconds / static_cast<double>(std::max<size_t>(window_.size(), 1));
  }
  double tokens_per_second() const {
    double seconds = 0, tokens = 0;
    for (const auto& [step_seconds, step_tokens] : window_) {
      seconds += step_seconds;
      tokens += static_cast<double>(step_tokens);
    }
    return seconds > 0 ? tokens / seconds : 0;
  }
  double mean_step_seconds() const { return steps_ > 0 ? total_seconds_ / static_cast<double>(steps_) : 0; }

 private:
  std::deque<std::pair<double, int64_t>> window_;
  double total_seconds_ = 0;
  int64_t steps_ = 0;
};

// Trains one run. Members are what changes from step to step.
class Trainer {
 public:
  Trainer(Run& run, EventWriter& events, RunControl& control)
      : run_(run), events_(events), control_(control), optimizer_(run.trained, OptimizerOptions(run)) {}

  absl::Status Train() {
    LUTHIER_RETURN_IF_ERROR(Resume());
    ReportStart();
    if (step_ == 0) EvaluateSplits("test", "base");
    last_report_ = Clock::now();
    while (step_ < run_.total_steps) {
      if (control_.stop) return Stop();
      LUTHIER_RETURN_IF_ERROR(OneStep());
      if (DueEvery(run_.plan.recipe.evaluation.every)) EvaluateSplits("validation", "tuned");
      if (DueEvery(run_.plan.recipe.checkpoint.every) || control_.checkpoint.exchange(false)) {
        LUTHIER_RETURN_IF_ERROR(Checkpoint());
      }
    }
    return Finish();
  }

 private:
  static AdamW::Options OptimizerOptions(const Run& run) {
    AdamW::Options options{*run.training().beta1, *run.training().beta2, 1e-8, *run.training().weight_decay, {},
                           LearningRateFactors(run.plan.recipe, run.trained)};
    // Norm weights are pulled towards 1 by nothing; decaying them to 0 only harms (as transformers' Trainer).
    for (const auto& [name, tensor] : run.trained) {
      if (tensor.dim() == 1) options.no_decay.insert(name);
    }
    return options;
  }

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
    evaluations_ = state->evaluations.get<std::map<std::string, json>>();
    return absl::OkStatus();
  }

  // Fetch, forward, backward, clip, finite check, step, report.
  absl::Status OneStep() {
    const Clock::time_point start = Clock::now();
    optimizer_.ZeroGradients();
    double loss_sum = 0;
    int64_t trained_tokens = 0, step_tokens = 0;
    for (const MicroBatch& rows : NextStep()) {
      const PackedBatch batch = Pack(rows);
      const Tensor loss = SumLoss(*run_.model, batch);
      loss.backward();
      loss_sum += loss.item<double>();
      trained_tokens += batch.trained_tokens();
      step_tokens += batch.size();
    }
    // One division for the whole step: the mean is over its tokens, however they were split into micro-batches.
    ScaleGradients(run_.trained, 1 / static_cast<double>(std::max<int64_t>(trained_tokens, 1)));
    loss_ = loss_sum / static_cast<double>(std::max<int64_t>(trained_tokens, 1));
    grad_norm_ = GlobalGradientNorm(run_.trained);
    if (!std::isfinite(loss_) || !std::isfinite(grad_norm_)) {
      return absl::OutOfRangeError(absl::StrCat("step ", step_ + 1, ": loss ", loss_, ", gradient norm ", grad_norm_,
                                                " are not finite; lower training.learning_rate (now ", *run_.training().learning_rate,
                                                ") or check the rows of this step. The last checkpoint is intact"));
    }
    ClipGradients(run_.trained, grad_norm_, *run_.training().clip_norm);
    learning_rate_ = LearningRate({*run_.training().learning_rate, *run_.training().warmup_ratio, *run_.training().schedule,
                                   run_.total_steps}, step_);
    optimizer_.Step(learning_rate_);
    ++step_;
    tokens_ += step_tokens;
    progress_.StepDone(SecondsSince(start), step_tokens);
    ReportProgress();
    return absl::OkStatus();
  }

  const Step& NextStep() {
    const int64_t steps_per_epoch = StepsPerEpoch(run_.lengths, run_.batches);
    const int64_t epoch = step_ / steps_per_epoch;
    if (epoch != planned_epoch_) {
      epoch_plan_ = PlanEpoch(run_.lengths, run_.batches, epoch);
      planned_epoch_ = epoch;
    }
    return epoch_plan_[static_cast<size_t>(step_ % steps_per_epoch)];
  }

  PackedBatch Pack(const MicroBatch& rows) const {
    std::vector<const Example*> examples;
    for (int32_t row : rows) examples.push_back(&run_.examples[static_cast<size_t>(row)]);
    return MakePackedBatch(examples, at::kCPU);
  }

  bool DueEvery(const std::optional<int64_t>& every) const {
    return every && *every > 0 && step_ % *every == 0 && step_ < run_.total_steps;
  }

  // Of all processes of this run.
  double Seconds() const { return earlier_seconds_ + SecondsSince(started_); }

  double Epoch() const {
    return static_cast<double>(step_) / static_cast<double>(StepsPerEpoch(run_.lengths, run_.batches));
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

  // Evaluations still to come, each as long as the last one of its split.
  double EvaluationSecondsLeft() const {
    double seconds = 0;
    for (const auto& [split, last_seconds] : evaluation_seconds_) {
      const int64_t every = run_.plan.recipe.evaluation.every.value_or(run_.total_steps);
      const int64_t times = split == "test" ? 1 : 1 + (run_.total_steps - 1) / every - step_ / every;
      seconds += static_cast<double>(std::max<int64_t>(times, 0)) * last_seconds;
    }
    return seconds;
  }

  // Evaluates the split of that name, if the dataset has it.
  void EvaluateSplits(const std::string& name, const std::string& model) {
    for (const EvaluationSplit& split : run_.splits) {
      if (split.name != name) continue;
      const Clock::time_point start = Clock::now();
      EvaluationOptions options;
      options.task = ParseTaskType(run_.plan.recipe.task).value_or(TaskType::kChat);
      options.micro_batch_tokens = *run_.training().micro_batch_tokens;
      options.max_new_tokens = *run_.plan.recipe.evaluation.max_new_tokens;
      options.generate = *run_.plan.recipe.evaluation.metric != "loss";
      options.max_examples = name == "test" ? kShownExamples : 0;
      json fields = ToJson(Evaluate(*run_.model, split, run_.base.tokenizer, run_.stop_ids, options));
      fields["step"] = step_;
      fields["split"] = name;
      fields["model"] = model;
      evaluation_seconds_[name] = SecondsSince(start);
      evaluations_[name + "/" + model] = fields;
      events_.Write("evaluation", std::move(fields));
    }
  }

  absl::Status Checkpoint() {
    TrainingState state;
    state.step = step_;
    state.weights = run_.trained;
    state.optimizer = optimizer_.State();
    state.generator_state = at::detail::getDefaultCPUGenerator().get_state();
    state.spec_hash = run_.spec_hash;
    state.tokens = tokens_;
    state.loss = loss_;
    state.seconds = Seconds();
    state.evaluations = evaluations_;
    LUTHIER_ASSIGN_OR_RETURN(checkpoint_path_, WriteCheckpoint(run_.out_folder, state, *run_.plan.recipe.checkpoint.keep));
    events_.Write("checkpoint", {{"step", step_}, {"path", checkpoint_path_}, {"bytes", FolderBytes(checkpoint_path_)}, {"loss", loss_}});
    return absl::OkStatus();
  }

  absl::Status Stop() {
    LUTHIER_RETURN_IF_ERROR(Checkpoint());
    events_.Write("stopped", {{"step", step_}, {"path", checkpoint_path_}});
    return absl::OkStatus();
  }

  absl::Status Finish() {
    EvaluateSplits("validation", "tuned");
    EvaluateSplits("test", "tuned");
    // The shortest rows suffice to tell whether the files compute what was trained.
    const PackedBatch probe = Pack({static_cast<int32_t>(std::min_element(run_.lengths.begin(), run_.lengths.end()) - run_.lengths.begin())});
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
  std::map<std::string, double> evaluation_seconds_;  // by split
  std::map<std::string, json> evaluations_;           // last of each split and model
};

absl::Status Attempt(const TrainerSpec& spec, const std::string& out_folder, EventWriter& events, RunControl& control) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Run> run, Prepare(spec, out_folder));
  return Trainer(*run, events, control).Train();
}

}  // namespace

std::string FailureCause(const absl::Status& status) {
  if (status.GetPayload(kUserDataPayload)) return "USER_DATA";
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
      return "CONFIG";
    case absl::StatusCode::kOutOfRange:
      return "NAN";
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied:
      return "STORAGE";
    case absl::StatusCode::kUnavailable:
      return "OOM";
    default:
      return "INTERNAL";
  }
}

absl::Status RunAttempt(const TrainerSpec& spec, const std::string& out_folder, EventWriter& events, RunControl& control) {
  absl::Status status;
  try {
    status = Attempt(spec, out_folder, events, control);
  } catch (const std::bad_alloc&) {
    status = absl::UnavailableError("out of memory; lower training.micro_batch_tokens or use a node with more memory");
  } catch (const std::exception& error) {  // LibTorch
    const std::string what = error.what();
    const bool memory = what.find("not enough memory") != std::string::npos || what.find("out of memory") != std::string::npos;
    status = memory ? absl::UnavailableError("out of memory; lower training.micro_batch_tokens or use a node with more memory")
                    : absl::InternalError(what);
  }
  if (!status.ok()) {
    events.Write("failed", {{"cause", FailureCause(status)}, {"message", std::string(status.message())}});
  }
  return status;
}

}  // namespace luthier
