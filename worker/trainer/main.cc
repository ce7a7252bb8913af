// luthier-trainer: trains one attempt, answers prompts, scores files. Wiring only.
#include <sys/prctl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/dataset/encode.h"
#include "lib/plan/trainer_spec.h"
#include "worker/trainer/distributed/rank_processes.h"
#include "worker/trainer/export/export.h"
#include "worker/trainer/export/gguf_adapter.h"
#include "worker/trainer/generate/generator.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/evaluation.h"
#include "worker/trainer/train/heap.h"
#include "worker/trainer/train/plan_report.h"
#include "worker/trainer/train/preparation.h"
#include "worker/trainer/train/run.h"

namespace luthier {
namespace {

int Fail(const absl::Status& status) {
  std::cerr << "error: " << status.message() << "\n";
  return 1;
}

struct RunArguments {
  std::string spec;
  std::string out;
  bool die_with_parent = false;
  std::optional<RankPlace> place;  // of a process that was started as one of several ranks
};

// One process for each device. They are started with the arguments that this one has, and their place.
int RunEveryRank(const RunArguments& arguments, int ranks) {
  return RunRanks(
      ranks,
      [&](int rank, int rendezvous) {
        return std::vector<std::string>{"run",
                                        "--spec",
                                        arguments.spec,
                                        "--out",
                                        arguments.out,
                                        "--rank",
                                        absl::StrCat(rank),
                                        absl::StrCat(ranks),
                                        absl::StrCat(rendezvous)};
      },
      stdout);
}

int RunCommand(const RunArguments& arguments) {
  if (arguments.die_with_parent) {
    const pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return 1;  // it died in between, and no signal comes any more
  }
  static RunControl control;  // outlives main: the thread that reads commands never ends
  absl::StatusOr<TrainerSpec> spec = ReadTrainerSpec(arguments.spec);
  std::error_code error;
  std::filesystem::create_directories(arguments.out, error);
  const auto fail_early = [](const char* cause, const absl::Status& status) {
    EventWriter(stdout, "local", "").Write("failed", {{"cause", cause}, {"message", std::string(status.message())}});
    return Fail(status);
  };
  if (error)
    return fail_early("STORAGE",
                      absl::PermissionDeniedError(absl::StrCat("--out ", arguments.out, ": ", error.message())));
  if (!spec.ok()) return fail_early("CONFIG", spec.status());
  const int ranks = static_cast<int>(spec->recipe.resources.devices.value_or(1));
  if (ranks > 1 && !arguments.place) {
    if (absl::Status status = CheckDevices(spec->recipe); !status.ok()) return fail_early("CONFIG", status);
    return RunEveryRank(arguments, ranks);
  }
  const RankPlace place = arguments.place.value_or(RankPlace());
  const auto threads = spec->recipe.resources.threads.value_or(at::get_num_threads());
  at::set_num_threads(std::max(1, static_cast<int>(threads) / place.size));
  EventWriter events(stdout, spec->attempt, place.rank == 0 ? arguments.out + "/metrics.jsonl" : "");
  ListenForCommands(control);
  StopOnSignal(control);
  const absl::Status status = RunAttempt(*spec, arguments.out, place, events, control);
  if (status.ok()) return 0;
  Fail(status);
  return absl::IsAborted(status) ? kLostRankExitCode : 1;
}

struct PlanArguments {
  std::string spec;
  bool measure = false;
  std::string output = "text";
};

absl::Status PlanJob(const PlanArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const TrainerSpec spec, ReadTrainerSpec(arguments.spec));
  if (spec.recipe.resources.threads) at::set_num_threads(static_cast<int>(*spec.recipe.resources.threads));
  LUTHIER_ASSIGN_OR_RETURN(const nlohmann::json report, MakePlanReport(spec, arguments.measure));
  std::cout << (arguments.output == "json"
                    ? report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                    : PlanReportText(report));
  return absl::OkStatus();
}

// A base model with the adapters to choose from, for generate and evaluate.
struct Loaded {
  ModelConfig config;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  NamedTensors weights;
  // The base itself first, then a model for each adapter; all share the base's weights.
  std::vector<std::string> names;
  std::vector<Adapter> adapters;  // one less
  std::vector<std::unique_ptr<DecoderModel>> models;

  const ChatTemplate* template_or_null() const { return chat_template ? &*chat_template : nullptr; }
};

// `adapters`: "NAME=DIR", or "DIR" for the name "tuned".
absl::StatusOr<std::unique_ptr<Loaded>> Load(const std::string& base, const std::vector<std::string>& adapters) {
  LUTHIER_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(base));
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(base));
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights, LoadWeights(base, facts.config, at::kFloat, WeightUse::kFrozen));
  auto loaded = std::make_unique<Loaded>(
      Loaded{facts.config, std::move(tokenizer), std::nullopt, std::move(weights), {"base"}, {}, {}});
  if (absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Load(base); chat_template.ok()) {
    loaded->chat_template = *std::move(chat_template);
  }
  LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {}));
  for (const std::string& adapter : adapters) {
    const size_t equals = adapter.find('=');
    loaded->names.push_back(equals == std::string::npos ? "tuned" : adapter.substr(0, equals));
    LUTHIER_ASSIGN_OR_RETURN(
        Adapter read, ReadAdapter(equals == std::string::npos ? adapter : adapter.substr(equals + 1), facts.config));
    LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {&read}));
    loaded->adapters.push_back(std::move(read));
  }
  return loaded;
}

struct GenerateArguments {
  std::string base;
  std::vector<std::string> adapters;
  std::string system;
  std::string prompt;
  std::string output = "text";
  GenerateOptions options;
};

// Answers one prompt with the base or with every adapter given.
absl::Status Answer(const Loaded& loaded, const GenerateArguments& arguments, const std::string& prompt) {
  const RowEncoder encoder(loaded.tokenizer, loaded.template_or_null(), {});
  OrderedJson messages = OrderedJson::array();
  if (!arguments.system.empty()) messages.push_back({{"role", "system"}, {"content", arguments.system}});
  messages.push_back({{"role", "user"}, {"content", prompt}});
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, encoder.EncodeMessages(messages));
  GenerateOptions options = arguments.options;
  options.stop_ids = encoder.stop_ids();
  options.context = loaded.config.max_position_embeddings;
  if (static_cast<int64_t>(ids.size()) >= options.context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt: has ", ids.size(),
                     " tokens with the template, which leaves no room for an answer in the "
                     "model's context of ",
                     options.context, "; give a shorter one"));
  }
  const size_t first = loaded.names.size() > 1 ? 1 : 0;
  for (size_t i = first; i < loaded.names.size(); ++i) {
    const auto answers = Generate(*loaded.models[i], {ids}, options);
    LUTHIER_ASSIGN_OR_RETURN(const std::string text, loaded.tokenizer.Decode(answers[0], /*skip_special_tokens=*/true));
    if (arguments.output == "json") {
      std::cout << nlohmann::json{{"model", loaded.names[i]}, {"prompt", prompt}, {"answer", text}}.dump(
                       -1, ' ', false, nlohmann::json::error_handler_t::replace)
                << std::endl;
    } else {
      if (loaded.names.size() > 2) std::cout << loaded.names[i] << ": ";
      std::cout << text << std::endl;
    }
  }
  return absl::OkStatus();
}

int GenerateCommand(const GenerateArguments& arguments) {
  const auto loaded = Load(arguments.base, arguments.adapters);
  if (!loaded.ok()) return Fail(loaded.status());
  if (!arguments.prompt.empty()) {
    const absl::Status status = Answer(**loaded, arguments, arguments.prompt);
    return status.ok() ? 0 : Fail(status);
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    if (absl::Status status = Answer(**loaded, arguments, line); !status.ok()) return Fail(status);
  }
  return 0;
}

struct EvaluateArguments {
  std::string base;
  std::string adapter;
  std::string data;
  std::string task = "chat";
  int64_t max_rows = 1'000'000;
  int64_t max_new_tokens = 64;
};

absl::Status EvaluateFile(const EvaluateArguments& arguments) {
  std::vector<std::string> adapters;
  if (!arguments.adapter.empty()) adapters.push_back(arguments.adapter);
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, Load(arguments.base, adapters));
  LUTHIER_ASSIGN_OR_RETURN(const TaskType task, ParseTaskType(arguments.task));
  const RowEncoder encoder(loaded->tokenizer, loaded->template_or_null(), {});
  LUTHIER_ASSIGN_OR_RETURN(const EvaluationSplit split, LoadSplit("test", arguments.data, encoder, arguments.max_rows));
  EvaluationOptions options;
  options.task = task;
  options.max_new_tokens = arguments.max_new_tokens;
  options.max_examples = 3;
  options.context = loaded->config.max_position_embeddings;
  // Nothing interrupts it.
  nlohmann::json result =
      ToJson(*Evaluate(*loaded->models.back(), split, loaded->tokenizer, encoder.stop_ids(), options));
  result["event"] = "evaluation";
  result["split"] = "test";
  result["model"] = adapters.empty() ? "base" : "tuned";
  std::cout << result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  return absl::OkStatus();
}

struct ExportArguments {
  std::string base;
  std::string adapter;
  std::string format;
  std::string out;
};

// Something to compare logits with where there is no row of a dataset: any tokens will do.
PackedBatch ProbeTokens(const ModelConfig& config) {
  constexpr int64_t kTokens = 24;
  Example document;
  for (int64_t i = 0; i < kTokens; ++i) {
    document.ids.push_back(static_cast<int32_t>((i * i * 7919 + 1) % config.vocab_size));
    document.trained.push_back(1);
  }
  return MakePackedBatch({&document}, at::kCPU);
}

// An adapter in another form: merged into its base, or as llama.cpp reads it.
absl::Status Export(const ExportArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, Load(arguments.base, {arguments.adapter}));
  LUTHIER_ASSIGN_OR_RETURN(const nlohmann::json config_json, ReadConfigJson(arguments.base));
  const Adapter& adapter = loaded->adapters[0];
  const PackedBatch probe = ProbeTokens(loaded->config);
  const TrainedModel trained{*loaded->models[1], probe};
  if (arguments.format == "gguf")
    return ExportGgufAdapter(adapter, loaded->weights, loaded->config, trained, arguments.out);
  LUTHIER_ASSIGN_OR_RETURN(const MergedModel merged, MergeAdapter(loaded->config, loaded->weights, adapter));
  const std::vector<int32_t> end_ids = RowEncoder(loaded->tokenizer, loaded->template_or_null(), {}).stop_ids();
  return ExportModel({merged.weights, MergedConfig(config_json, merged), arguments.base, end_ids}, trained,
                     arguments.out);
}

int Main(int argc, char** argv) {
  KeepHeapPages();
  CLI::App app{"Trains LoRA adapters or whole models, and tries them out. Needs no server."};
  app.require_subcommand(1);

  RunArguments run;
  CLI::App* run_command =
      app.add_subcommand("run",
                         "Train one attempt; JSON lines on standard output (docs/trainer-protocol.md). "
                         "Started again with the same --out it goes on from the last checkpoint.");
  run_command->add_option("--spec", run.spec, "Spec file (JSON)")->required()->check(CLI::ExistingFile);
  run_command->add_option("--out", run.out, "Folder for checkpoints, metrics and the artifact")->required();
  run_command->add_flag("--die-with-parent", run.die_with_parent, "End when the parent process ends (agents use this)");
  std::vector<int> place;
  run_command->add_option("--rank", place, "Rank, number of ranks, descriptor of their rendezvous")
      ->expected(3)
      ->group("");  // not for people: this program starts itself with it

  PlanArguments plan;
  CLI::App* plan_command =
      app.add_subcommand("plan", "Say what a spec would take: memory, steps, time, and every value with its reason.");
  plan_command->add_option("--spec", plan.spec, "Spec file (JSON)")->required()->check(CLI::ExistingFile);
  plan_command->add_flag("--measure", plan.measure, "Load the model and time two steps instead of estimating");
  plan_command->add_option("-o,--output", plan.output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();

  GenerateArguments generate;
  CLI::App* generate_command =
      app.add_subcommand("generate", "Answer a prompt, or one line of standard input after another.");
  generate_command->add_option("--base", generate.base, "Base model folder")->required();
  generate_command->add_option("--adapter", generate.adapters,
                               "Adapter folder, or NAME=FOLDER; may be repeated: all share one base");
  generate_command->add_option("--system", generate.system, "System message");
  generate_command->add_option("--prompt", generate.prompt, "User message");
  generate_command->add_option("--max-new-tokens", generate.options.max_new_tokens, "Tokens to generate at most")
      ->capture_default_str();
  generate_command->add_option("--temperature", generate.options.temperature, "0 is greedy")->capture_default_str();
  generate_command->add_option("--top-p", generate.options.top_p, "Nucleus sampling")->capture_default_str();
  generate_command->add_option("--top-k", generate.options.top_k, "0 keeps all tokens")->capture_default_str();
  generate_command->add_option("--seed", generate.options.seed, "Seed of sampling")->capture_default_str();
  generate_command->add_option("-o,--output", generate.output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();

  EvaluateArguments evaluate;
  CLI::App* evaluate_command = app.add_subcommand("evaluate", "Loss, token accuracy and scored answers of a file.");
  evaluate_command->add_option("--base", evaluate.base, "Base model folder")->required();
  evaluate_command->add_option("--adapter", evaluate.adapter, "Adapter folder");
  evaluate_command->add_option("--data", evaluate.data, "JSONL file")->required()->check(CLI::ExistingFile);
  evaluate_command->add_option("--task", evaluate.task, "Kind of task, for scoring")->capture_default_str();
  evaluate_command->add_option("--max-new-tokens", evaluate.max_new_tokens, "Tokens to generate a row at most")
      ->capture_default_str();

  ExportArguments exporting;
  CLI::App* export_command =
      app.add_subcommand("export", "Write a tuned model in another form; the files are read again and compared.");
  export_command->add_option("--base", exporting.base, "Base model folder")->required();
  export_command->add_option("--adapter", exporting.adapter, "Adapter folder in PEFT format")->required();
  export_command
      ->add_option("--format", exporting.format,
                   "merged: a model folder in Hugging Face format; gguf: an adapter for llama.cpp")
      ->required()
      ->check(CLI::IsMember({"merged", "gguf"}));
  export_command
      ->add_option("--out", exporting.out, "Folder (merged) or file (gguf) to write; what is there is replaced")
      ->required();

  app.add_subcommand("version", "Version and device.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!place.empty()) run.place = {place[0], place[1], place[2]};
  if (run_command->parsed()) return RunCommand(run);
  if (plan_command->parsed()) {
    const absl::Status status = PlanJob(plan);
    return status.ok() ? 0 : Fail(status);
  }
  if (generate_command->parsed()) return GenerateCommand(generate);
  if (evaluate_command->parsed()) {
    const absl::Status status = EvaluateFile(evaluate);
    return status.ok() ? 0 : Fail(status);
  }
  if (export_command->parsed()) {
    const absl::Status status = Export(exporting);
    return status.ok() ? 0 : Fail(status);
  }
  std::cout << "luthier-trainer " LUTHIER_VERSION ", LibTorch 2.11.0, cpu, " << at::get_num_threads() << " threads\n";
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
