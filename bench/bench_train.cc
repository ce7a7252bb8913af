// bench-train: times optimizer steps of the real trainer on a model folder and a data file, and prints one JSON line
// whose fields are those of the Python baseline (docs/performance.md), so that both go into one table.
#include <sys/resource.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/flops.h"
#include "lib/plan/memory.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/device.h"
#include "worker/trainer/ops/subnormals.h"
#include "worker/trainer/train/heap.h"
#include "worker/trainer/train/preparation.h"
#include "worker/trainer/train/step.h"

namespace luthier {
namespace {

using nlohmann::json;

// Steps before the steady ones: the first allocates, the second still finds new sizes.
constexpr int64_t kWarmUpSteps = 2;

struct Arguments {
  std::string model, data;
  std::string method = "lora", dtype = "fp32";
  int64_t rank = 16;
  double alpha = 32, learning_rate = 2e-4;
  int64_t max_length = 512, micro_batch_tokens = 2048, grad_accum = 1, steps = 8, threads = 2, seed = 1;
  bool random_init = false, grad_checkpointing = false;
};

double Now(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Seconds since this process was started, loading of libraries included: field 22 of /proc/self/stat, in clock ticks
// since boot.
double ProcessAge() {
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  const std::vector<std::string> values{std::istream_iterator<std::string>(fields), {}};
  return Now(CLOCK_BOOTTIME) - std::stod(values[19]) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double LoadAverage() {
  double load = 0;
  getloadavg(&load, 1);
  return std::round(load * 100) / 100;
}

// `tiny` of `models/tiny` and of `models/tiny/`.
std::string LastPart(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// The job that the baseline's README describes: every linear layer, constant rate, rows in file order, long rows cut at
// their end.
TrainerSpec SpecOf(const Arguments& arguments) {
  TrainerSpec spec;
  spec.base_model = arguments.model;
  spec.init = arguments.random_init ? "random" : "pretrained";
  spec.train = {{.path = arguments.data, .name = arguments.data}};
  Recipe& recipe = spec.recipe;
  recipe.tuning = arguments.method;
  if (recipe.tuning == "lora") {
    recipe.lora.rank = arguments.rank;
    recipe.lora.alpha = arguments.alpha;
  }
  TrainingSpec& training = recipe.training;
  training.epochs = 1000;
  training.max_steps = arguments.steps;
  training.learning_rate = arguments.learning_rate;
  training.schedule = "constant";
  training.warmup_ratio = 0;
  training.beta2 = 0.999;
  training.batch_tokens = arguments.micro_batch_tokens * arguments.grad_accum;
  // A step's rows are cut where they come nearest to the wished tokens, so half a row may stand over.
  training.micro_batch_tokens = arguments.micro_batch_tokens + arguments.max_length / 2;
  training.max_length = arguments.max_length;
  training.seed = arguments.seed;
  training.precision = arguments.dtype == "fp32" ? "fp32" : "bf16";
  training.order = "file";
  training.loss_on = "assistant";
  training.too_long = "truncate";
  training.activation_checkpointing = arguments.grad_checkpointing;
  recipe.resources.threads = arguments.threads;
  return spec;
}

// What one step took and worked on.
struct Timed {
  double end = 0, cpu = 0;  // clocks at its end
  StepResult result;
  double squared_lengths = 0;
};

struct Totals {
  int64_t tokens = 0, trained_tokens = 0;
  double squared_lengths = 0;
};

Totals Sum(const std::vector<Timed>& steps, size_t begin) {
  Totals totals;
  for (size_t i = begin; i < steps.size(); ++i) {
    totals.tokens += steps[i].result.tokens;
    totals.trained_tokens += steps[i].result.trained_tokens;
    totals.squared_lengths += steps[i].squared_lengths;
  }
  return totals;
}

double NominalFlops(const Run& run, const Totals& totals) {
  const ModelConfig& config = run.base.facts.config;
  return TrainingFlops(config, !run.lora(), ParametersOfAToken(run.adapter.config, config),
                       static_cast<double>(totals.tokens), totals.squared_lengths);
}

// The baseline's formats are those of weights as well as of products: `bf16` holds bf16 weights, `amp` fp32 ones, and
// both multiply in bf16. The trainer holds what is trained in fp32 and a frozen base in the format of its products, so
// one of the two remains for each method; a figure under the other name would be compared with other work.
absl::Status CheckFormat(const Arguments& arguments) {
  if (arguments.method == "lora" && arguments.dtype == "amp") {
    return absl::InvalidArgumentError(
        "--dtype: amp multiplies an fp32 base in bf16, and the trainer holds a frozen base in the format in which it "
        "multiplies; give bf16");
  }
  if (arguments.method == "full" && arguments.dtype == "bf16") {
    return absl::InvalidArgumentError(
        "--dtype: bf16 trains bf16 weights, and the trainer trains fp32 ones whatever it multiplies in; give amp");
  }
  return absl::OkStatus();
}

// What all steps of a run took.
struct Measured {
  std::vector<Timed> steps;
  MemoryInputs largest;  // of the largest micro-batch
  double ready_seconds = 0, first_step_seconds = 0;
};

// Counts the rows of a step, and makes `largest` that of all micro-batches so far.
void CountRows(const Run& run, const Step& step, Timed& timed, MemoryInputs& largest) {
  for (const MicroBatch& micro_batch : step) {
    int64_t tokens = 0, trained_tokens = 0;
    for (const int32_t row : micro_batch) {
      tokens += run.lengths[static_cast<size_t>(row)];
      trained_tokens += run.examples[static_cast<size_t>(row)].TrainedTokens();
      timed.squared_lengths += std::pow(run.lengths[static_cast<size_t>(row)], 2);
    }
    largest.micro_batch_tokens = std::max(largest.micro_batch_tokens, tokens);
    largest.trained_tokens = std::max(largest.trained_tokens.value_or(0), trained_tokens);
  }
}

absl::StatusOr<Measured> TakeSteps(const Run& run, const Arguments& arguments) {
  Stepper stepper(run);
  Measured measured;
  measured.largest = MemoryInputsOf(run.plan.recipe, run.base.facts.config);
  measured.largest.micro_batch_tokens = 0;
  measured.ready_seconds = ProcessAge();
  for (int64_t index = 0; index < arguments.steps; ++index) {
    const std::vector<Step> epoch = PlanEpoch(run.lengths, run.batches, index / run.steps_per_epoch);
    const Step& step = epoch[static_cast<size_t>(index % run.steps_per_epoch)];
    Timed timed;
    LUTHIER_ASSIGN_OR_RETURN(timed.result, stepper.Take(step, arguments.learning_rate));
    timed.end = Now(CLOCK_MONOTONIC);
    timed.cpu = Now(CLOCK_PROCESS_CPUTIME_ID);
    CountRows(run, step, timed, measured.largest);
    if (index == 0) measured.first_step_seconds = ProcessAge();
    measured.steps.push_back(timed);
  }
  return measured;
}

absl::StatusOr<json> Measure(const Arguments& arguments) {
  LUTHIER_RETURN_IF_ERROR(CheckFormat(arguments));
  const double load_at_start = LoadAverage();
  at::set_num_threads(static_cast<int>(arguments.threads));
  const TrainerSpec spec = SpecOf(arguments);
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Run> run, Prepare(spec, ""));
  at::manual_seed(static_cast<uint64_t>(arguments.seed));
  LUTHIER_ASSIGN_OR_RETURN(const Measured measured, TakeSteps(*run, arguments));
  const std::vector<Timed>& steps = measured.steps;
  const MemoryInputs& largest = measured.largest;
  const Totals all = Sum(steps, 0), steady = Sum(steps, kWarmUpSteps);
  const double seconds = steps.back().end - steps[kWarmUpSteps - 1].end;
  const double flops = NominalFlops(*run, steady);
  json losses = json::array(), step_seconds = json::array();
  for (const Timed& step : steps) losses.push_back(step.result.loss);
  for (size_t i = 1; i < steps.size(); ++i) step_seconds.push_back(steps[i].end - steps[i - 1].end);
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return json{{"engine", "luthier"},
              {"method", arguments.method},
              {"model", LastPart(arguments.model)},
              {"dtype", arguments.dtype},
              {"device", run->device.str()},
              {"threads", arguments.threads},
              {"rank", run->lora() ? arguments.rank : 0},
              {"max_length", arguments.max_length},
              {"micro_batch_tokens", arguments.micro_batch_tokens},
              {"grad_accum", arguments.grad_accum},
              {"grad_checkpointing", arguments.grad_checkpointing},
              {"largest_micro_batch", largest.micro_batch_tokens},
              {"steps", arguments.steps},
              {"steady_steps", arguments.steps - kWarmUpSteps},
              {"tokens", all.tokens},
              {"trained_tokens", all.trained_tokens},
              {"steady_tokens", steady.tokens},
              {"steady_trained_tokens", steady.trained_tokens},
              {"steady_padded_tokens", steady.tokens},
              {"steady_seconds", seconds},
              {"tokens_per_s", static_cast<double>(steady.tokens) / seconds},
              {"trained_tokens_per_s", static_cast<double>(steady.trained_tokens) / seconds},
              {"steady_cpu_seconds", steps.back().cpu - steps[kWarmUpSteps - 1].cpu},
              {"nominal_gflop_per_token", flops / static_cast<double>(steady.tokens) / 1e9},
              {"nominal_gflop_per_s", flops / seconds / 1e9},
              {"ready_seconds", measured.ready_seconds},
              {"first_step_seconds", measured.first_step_seconds},
              {"peak_rss_mib", static_cast<double>(usage.ru_maxrss) / 1024},
              {"estimated_mib", static_cast<double>(EstimateMemory(run->base.facts, largest).total) / (1 << 20)},
              {"peak_gpu_mib", static_cast<double>(PeakAllocatedBytes(run->device)) / (1 << 20)},
              {"losses", losses},
              {"final_loss", steps.back().result.loss},
              {"step_seconds", step_seconds},
              {"load_average", {load_at_start, LoadAverage()}},
              {"versions", {{"luthier", LUTHIER_VERSION}, {"libtorch", "2.11.0"}}}};
}

int Main(int argc, char** argv) {
  KeepHeapPages();
  ops::FlushSubnormals();
  Arguments arguments;
  bool as_json = false;
  CLI::App app{"Times optimizer steps of the trainer."};
  app.add_option("--model", arguments.model, "Base model folder")->required();
  app.add_option("--data", arguments.data, "JSONL file")->required()->check(CLI::ExistingFile);
  app.add_option("--method", arguments.method)->check(CLI::IsMember({"lora", "full"}))->capture_default_str();
  app.add_option(
         "--dtype", arguments.dtype,
         "fp32; bf16: products and the frozen base in bf16 (lora); amp: products in bf16, weights in fp32 (full)")
      ->check(CLI::IsMember({"fp32", "bf16", "amp"}))
      ->capture_default_str();
  constexpr int64_t kMostTokens = 1 << 24;
  app.add_option("--rank", arguments.rank)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--alpha", arguments.alpha)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", arguments.learning_rate)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--max-length", arguments.max_length, "Tokens; longer rows are cut at their end")
      ->check(CLI::Range(int64_t{2}, kMostTokens))
      ->capture_default_str();
  app.add_option("--micro-batch-tokens", arguments.micro_batch_tokens)
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str();
  app.add_option("--grad-accum", arguments.grad_accum, "Micro-batches a step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--steps", arguments.steps, "Of which the first 2 are not timed")
      ->check(CLI::Range(3, 1'000'000))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--seed", arguments.seed)->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_flag("--grad-checkpointing", arguments.grad_checkpointing,
               "Keep only the inputs of layers and compute the rest again");
  app.add_flag("--random-init", arguments.random_init, "Random weights: the folder needs none");
  app.add_flag("--json", as_json, "One JSON line (otherwise the main figures)");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<json> result = Measure(arguments);
  if (!result.ok()) {
    std::cerr << "error: " << result.status().message() << "\n";
    return 1;
  }
  if (as_json) {
    std::cout << result->dump() << "\n";
    return 0;
  }
  for (const char* field :
       {"tokens_per_s", "nominal_gflop_per_s", "first_step_seconds", "peak_rss_mib", "estimated_mib", "final_loss"}) {
    std::cout << field << " " << (*result)[field] << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) {
  try {
    return luthier::Main(argc, argv);
  } catch (const std::exception& error) {  // LibTorch throws
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
