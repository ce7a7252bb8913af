#include "worker/trainer/train/plan_report.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/flops.h"
#include "worker/trainer/train/preparation.h"
#include "worker/trainer/train/progress.h"
#include "worker/trainer/train/step.h"

namespace luthier {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Share of a plain matrix product's speed that a training step reaches by the count of TrainingFlops, which is more
// than is computed (docs/performance.md, "Estimates of memory and time").
constexpr double kStepEfficiency = 0.9;

// Operations a second of a matrix product of a model's usual size, on the device that will train.
double MatrixProductSpeed(at::ScalarType type, at::Device device) {
  constexpr int64_t kTokens = 512, kSize = 1024;
  constexpr double kSeconds = 0.2;
  const at::TensorOptions options = at::TensorOptions(type).device(device);
  const Tensor x = at::ones({kTokens, kSize}, options), weight = at::ones({kSize, kSize}, options);
  const auto multiply = [&] { return at::mm(x, weight); };
  const auto wait_for = [](const Tensor& product) { product[0][0].item<double>(); };  // a GPU works behind its calls
  wait_for(multiply());                                                               // the first one starts threads
  int64_t products = 0;
  Tensor last;
  const Clock::time_point start = Clock::now();
  for (; SecondsSince(start) < kSeconds; ++products) last = multiply();
  wait_for(last);
  return static_cast<double>(2 * products * kTokens * kSize * kSize) / SecondsSince(start);
}

// What one pass over the rows is.
struct Epoch {
  int64_t rows = 0, tokens = 0, trained_tokens = 0;
  int64_t largest_micro_batch = 0, most_trained = 0;  // tokens and trained tokens of a micro-batch
  Step largest;                                       // that has the largest micro-batch
  double squared_lengths = 0;
};

Epoch FirstEpoch(const Run& run) {
  Epoch epoch;
  for (const Step& step : PlanEpoch(run.lengths, run.batches, 0)) {
    for (const MicroBatch& rows : step) {
      int64_t tokens = 0, trained_tokens = 0;
      for (const int32_t row : rows) {
        const int64_t length = run.lengths[static_cast<size_t>(row)];
        tokens += length;
        trained_tokens += run.examples[static_cast<size_t>(row)].TrainedTokens();
        epoch.squared_lengths += static_cast<double>(length * length);
      }
      epoch.rows += static_cast<int64_t>(rows.size());
      epoch.tokens += tokens;
      epoch.trained_tokens += trained_tokens;
      epoch.most_trained = std::max(epoch.most_trained, trained_tokens);
      if (tokens > epoch.largest_micro_batch) epoch.largest = step;
      epoch.largest_micro_batch = std::max(epoch.largest_micro_batch, tokens);
    }
  }
  return epoch;
}

int64_t AvailableBytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    int64_t kib = 0;
    if (line.starts_with("MemAvailable:") && absl::SimpleAtoi(absl::StripSuffix(line.substr(13), "kB"), &kib))
      return kib * 1024;
  }
  return 0;
}

json MemoryJson(const MemoryEstimate& memory) {
  return {{"weights", memory.weights}, {"training_state", memory.training_state}, {"activations", memory.activations},
          {"head", memory.head},       {"workspace", memory.workspace},           {"total", memory.total}};
}

json EstimatedTime(const Run& run, const Epoch& epoch) {
  const ModelConfig& config = run.base.facts.config;
  const Recipe& recipe = run.plan.recipe;
  const bool full = recipe.tuning == "full";
  const int64_t of_adapter = full ? 0 : ParametersOfAToken(AdapterConfigOf(recipe.lora, config), config);
  const double speed = MatrixProductSpeed(run.compute().type.value_or(at::kFloat), run.device);
  const double operations =
      TrainingFlops(config, full, of_adapter, static_cast<double>(epoch.tokens), epoch.squared_lengths);
  const double step = operations / static_cast<double>(run.steps_per_epoch) / (kStepEfficiency * speed);
  return {{"step_seconds", step},
          {"seconds", step * static_cast<double>(run.total_steps)},
          {"reason",
           absl::StrFormat(
               "%.3g operations a step at %.0f %% of the %.3g a second of a matrix product here; without evaluation",
               operations / static_cast<double>(run.steps_per_epoch), 100 * kStepEfficiency, speed)}};
}

// Takes a few steps. The first finds its memory and is not timed: it is the one that needs most.
absl::StatusOr<json> MeasuredTime(const Run& run, const Epoch& epoch) {
  constexpr size_t kTimed = 2;
  const std::vector<Step> steps = PlanEpoch(run.lengths, run.batches, 0);
  Stepper stepper(run);
  LUTHIER_RETURN_IF_ERROR(stepper.Take(epoch.largest, /*learning_rate=*/0).status());
  const Clock::time_point start = Clock::now();
  int64_t tokens = 0;
  for (size_t i = 0; i < kTimed; ++i) {
    LUTHIER_ASSIGN_OR_RETURN(const StepResult result, stepper.Take(steps[i % steps.size()], /*learning_rate=*/0));
    tokens += result.tokens;
  }
  const double a_token = SecondsSince(start) / static_cast<double>(tokens);
  const double step = a_token * static_cast<double>(epoch.tokens) / static_cast<double>(run.steps_per_epoch);
  return json{{"step_seconds", step},
              {"seconds", step * static_cast<double>(run.total_steps)},
              {"reason", absl::StrFormat("%d steps were timed here, %.0f tokens a second; without evaluation", kTimed,
                                         1 / a_token)}};
}

std::string Gigabytes(const json& bytes) { return absl::StrFormat("%.2f GB", bytes.get<double>() / 1e9); }

std::string Duration(double seconds) {
  if (seconds < 90) return absl::StrFormat("%.0f s", std::max(1.0, seconds));
  if (seconds < 5400) return absl::StrFormat("%.0f min", seconds / 60);
  return absl::StrFormat("%.1f h", seconds / 3600);
}

}  // namespace

absl::StatusOr<json> MakePlanReport(const TrainerSpec& spec, bool measure) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Run> run, measure ? Prepare(spec, "") : PlanRun(spec, ""));
  const Epoch epoch = FirstEpoch(*run);
  MemoryInputs inputs = MemoryInputsOf(run->plan.recipe, run->base.facts.config);
  inputs.micro_batch_tokens = epoch.largest_micro_batch;
  inputs.trained_tokens = epoch.most_trained;
  const MemoryEstimate memory = EstimateMemory(run->base.facts, inputs);
  json time;
  json memory_bytes = MemoryJson(memory);
  if (measure) {
    LUTHIER_ASSIGN_OR_RETURN(time, MeasuredTime(*run, epoch));
    memory_bytes["measured"] = PeakMemoryBytes();
  } else {
    time = EstimatedTime(*run, epoch);
  }
  std::vector<std::string> warnings = run->plan.warnings;
  const int64_t available = AvailableBytes();
  // What was measured is not counted again: it is not available any more.
  if (!measure && available > 0 && memory.total > available) {
    warnings.push_back(absl::StrCat(
        "the job needs about ", Gigabytes(memory.total), " and this machine has ", Gigabytes(available),
        " to give; lower training.micro_batch_tokens, set training.activation_checkpointing, or use another machine"));
  }
  return json{{"memory_bytes", memory_bytes},
              {"available_bytes", available},
              {"rows", epoch.rows},
              {"tokens", epoch.tokens},
              {"trained_tokens", epoch.trained_tokens},
              {"longest_row", *std::max_element(run->lengths.begin(), run->lengths.end())},
              {"largest_micro_batch", epoch.largest_micro_batch},
              {"steps_per_epoch", run->steps_per_epoch},
              {"total_steps", run->total_steps},
              {"dataset", ToJson(run->files)},
              {"time", time},
              {"resolved", ToJson(run->plan.values)},
              {"warnings", warnings}};
}

std::string PlanReportText(const json& report) {
  const json &memory = report["memory_bytes"], &time = report["time"], &resolved = report["resolved"],
             &warnings = report["warnings"], &dataset = report["dataset"];
  std::string text = absl::StrCat(
      "memory   about ", Gigabytes(memory["total"]), ": weights ", Gigabytes(memory["weights"]), ", training state ",
      Gigabytes(memory["training_state"]), ", activations ", Gigabytes(memory["activations"]), ", head ",
      Gigabytes(memory["head"]), ", runtime ", Gigabytes(memory["workspace"]), "\n");
  if (memory.contains("measured"))
    absl::StrAppend(&text, "         ", Gigabytes(memory["measured"]), " measured, with the largest micro-batch\n");
  absl::StrAppend(&text, "rows     ", report["rows"].dump(), " of ", report["tokens"].dump(), " tokens, ",
                  report["trained_tokens"].dump(), " trained; the longest has ", report["longest_row"].dump(), "\n");
  for (const json& file : dataset) {
    absl::StrAppend(&text, "         ", file["part"].get<std::string>(), ": ", file["rows"].dump(), " rows of ",
                    file["file"].get<std::string>());
    if (file.value("weight", 1.0) != 1) absl::StrAppend(&text, ", weight ", file["weight"].dump());
    if (file["truncated"] != 0) absl::StrAppend(&text, ", ", file["truncated"].dump(), " cut at max_length");
    if (file["dropped"] != 0) absl::StrAppend(&text, ", ", file["dropped"].dump(), " left out");
    if (file["duplicates"] != 0) {
      absl::StrAppend(&text, file["duplicates_at_least"].get<bool>() ? ", at least " : ", ", file["duplicates"].dump(),
                      " equal to an earlier one");
    }
    absl::StrAppend(&text, "\n");
  }
  absl::StrAppend(&text, "steps    ", report["total_steps"].dump(), ", ", report["steps_per_epoch"].dump(),
                  " for one pass; at most ", report["largest_micro_batch"].dump(), " tokens at a time\n");
  absl::StrAppend(&text, "time     about ", Duration(time["seconds"].get<double>()), ": ",
                  time["reason"].get<std::string>(), "\n\n");
  size_t widest_field = 0, widest_value = 0;
  for (const json& value : resolved) {
    widest_field = std::max(widest_field, value["field"].get_ref<const std::string&>().size());
    widest_value = std::max(widest_value, value["value"].get_ref<const std::string&>().size());
  }
  for (const json& value : resolved) {
    absl::StrAppendFormat(&text, "%-*s  %-*s  %s\n", static_cast<int>(widest_field), value["field"].get<std::string>(),
                          static_cast<int>(widest_value), value["value"].get<std::string>(),
                          value["reason"].get<std::string>());
  }
  for (const json& warning : warnings) absl::StrAppend(&text, "warning: ", warning.get<std::string>(), "\n");
  return text;
}

}  // namespace luthier
