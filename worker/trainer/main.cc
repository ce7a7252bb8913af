// luthier-trainer: trains one attempt, answers prompts, scores files. Wiring only.
#include <c10/util/Logging.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/machine.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/dataset/encode.h"
#include "lib/plan/block_reader.h"
#include "lib/plan/trainer_spec.h"
#include "lib/text/template_source.h"
#include "worker/trainer/distributed/rank_processes.h"
#include "worker/trainer/distributed/rendezvous.h"
#include "worker/trainer/export/conversion.h"
#include "worker/trainer/export/export_place.h"
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

// The folder of a run. Nothing that it reads may be what it writes.
absl::Status MakeOut(const TrainerSpec& spec, const std::string& out) {
  std::vector<ExportInput> inputs = {{"base_model", spec.base_model}};
  if (!spec.start_adapter.empty()) inputs.emplace_back("start_adapter", spec.start_adapter);
  const std::string artifact = spec.exports()                 ? PlaceOfExport(spec)
                               : spec.recipe.tuning == "lora" ? "adapter"
                                                              : "model";
  LUTHIER_RETURN_IF_ERROR(CheckRunFolder(out, artifact, inputs));
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error) return absl::PermissionDeniedError(absl::StrCat("--out ", out, ": ", error.message()));
  return absl::OkStatus();
}

// More threads than CPUs only wait for each other; that few are let through everywhere keeps specs portable.
// `ranks` divide them.
absl::Status UseThreads(const ResourceSpec& resources, int ranks) {
  constexpr int64_t kAlways = 4;
  const int64_t most = std::max<int64_t>(kAlways, UsableCpus());
  if (resources.threads.value_or(1) > most) {
    return absl::InvalidArgumentError(absl::StrCat("resources.threads: ", *resources.threads,
                                                   " is more than this machine has CPUs; give at most ", most,
                                                   ", or auto"));
  }
  const auto threads = static_cast<int>(resources.threads.value_or(at::get_num_threads()));
  at::set_num_threads(std::max(1, threads / ranks));
  return absl::OkStatus();
}

// Which of a run's nodes this is: --node-rank, --meeting and --address, of which there are all or none.
struct NodeArguments {
  std::optional<int> rank;
  std::string meeting;
  std::string address;

  bool leads() const { return rank.value_or(0) == 0; }
};

struct RunArguments {
  std::string spec;
  std::string out;
  bool die_with_parent = false;
  NodeArguments node;
  std::optional<RankPlace> place;  // of a process that was started as one of several ranks
};

// How the ranks of this node find those of others, if the run has several nodes. INVALID_ARGUMENT if the flags do not
// say what the spec needs.
absl::StatusOr<std::optional<Meeting>> MeetingOf(const TrainerSpec& spec, const NodeArguments& node) {
  const int64_t nodes = spec.recipe.resources.nodes.value_or(1);
  if (!node.rank && nodes == 1) return std::nullopt;
  if (!node.rank) {
    return absl::InvalidArgumentError(
        absl::StrCat("resources.nodes: ", nodes,
                     " nodes train together where each is told which one it is; give --node-rank, --meeting and "
                     "--address, or set resources.nodes to 1"));
  }
  if (nodes == 1) {
    return absl::InvalidArgumentError(
        "--node-rank: goes with several nodes, and resources.nodes is 1; leave out --node-rank, --meeting and "
        "--address, or set resources.nodes");
  }
  if (*node.rank >= nodes) {
    return absl::InvalidArgumentError(absl::StrCat("--node-rank: ", *node.rank, " is out of range; resources.nodes is ",
                                                   nodes, ", so give 0 to ", nodes - 1));
  }
  LUTHIER_ASSIGN_OR_RETURN(Meeting meeting, ParseMeeting(node.meeting));
  meeting.address = node.address;
  meeting.run = spec.attempt;
  return std::optional<Meeting>(std::move(meeting));
}

// The ranks of this node, one for each of its devices.
LocalRanks RanksOfNode(const ResourceSpec& resources, const NodeArguments& node) {
  const auto devices = static_cast<int>(resources.devices.value_or(1));
  const auto nodes = static_cast<int>(resources.nodes.value_or(1));
  return {.first = node.rank.value_or(0) * devices, .count = devices, .of = nodes * devices};
}

// A process for each rank. They are started with the arguments that this one has, and their place. What keeps ranks
// from meeting is this node's fault and not the run's, which says so by a last word: there is none.
int RunEveryRank(const RunArguments& arguments, const std::optional<Meeting>& meeting, const LocalRanks& local) {
  const absl::StatusOr<int> rendezvous = MakeRendezvous(meeting, local.lead());
  if (!rendezvous.ok()) return Fail(rendezvous.status());
  if (meeting) UseNetworkOf(meeting->address);
  return RunRanks(
      local,
      [&](int rank) {
        std::vector<std::string> words = {"run", "--spec", arguments.spec, "--out", arguments.out};
        if (meeting) {
          words.insert(words.end(), {"--node-rank", absl::StrCat(*arguments.node.rank), "--meeting",
                                     arguments.node.meeting, "--address", arguments.node.address});
        }
        words.emplace_back("--rank");
        words.push_back(absl::StrCat(rank));
        if (*rendezvous >= 0) words.push_back(absl::StrCat(*rendezvous));
        return words;
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
  const auto fail_early = [&](const char* cause, const absl::Status& status) {
    EventWriter(stdout, spec.ok() ? spec->attempt : "local", "")
        .Write("failed", {{"cause", cause}, {"message", std::string(status.message())}});
    return Fail(status);
  };
  if (!spec.ok()) return fail_early("CONFIG", spec.status());
  const absl::StatusOr<std::optional<Meeting>> meeting = MeetingOf(*spec, arguments.node);
  if (!meeting.ok()) return fail_early("CONFIG", meeting.status());
  if (arguments.node.leads()) {  // only its ranks need a folder
    if (absl::Status status = MakeOut(*spec, arguments.out); !status.ok()) {
      return fail_early(FailureCause(status).c_str(), status);
    }
  }
  const LocalRanks local = RanksOfNode(spec->recipe.resources, arguments.node);
  if (absl::Status status = UseThreads(spec->recipe.resources, arguments.place ? local.count : 1); !status.ok()) {
    return fail_early("CONFIG", status);
  }
  if (local.of > 1 && !arguments.place) {
    if (absl::Status status = CheckDevices(spec->recipe); !status.ok()) return fail_early("CONFIG", status);
    return RunEveryRank(arguments, *meeting, local);
  }
  RankPlace place = arguments.place.value_or(RankPlace());
  place.size = local.of;
  place.local_rank = place.rank - local.first;
  place.meeting = *meeting;
  if (place.meeting) FLAGS_caffe2_log_level = c10::GLOG_ERROR;  // else c10d warns of every machine that has no name
  EventWriter events(stdout, spec->attempt, place.rank == 0 ? arguments.out + "/" + kMetricsFile : "");
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
  if (spec.exports()) return absl::InvalidArgumentError("export: takes no steps, so there is nothing to plan; run it");
  LUTHIER_RETURN_IF_ERROR(UseThreads(spec.recipe.resources, /*ranks=*/1));
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
  TemplateSources own_template;  // that the adapters were trained with, if it is not the base model's

  const ChatTemplate* template_or_null() const { return chat_template ? &*chat_template : nullptr; }
};

// An adapter as the command line names it.
struct NamedFolder {
  std::string name;
  std::string folder;
};

// "NAME=DIR", or "DIR" for the name "tuned".
absl::StatusOr<std::vector<NamedFolder>> ParseAdapters(const std::vector<std::string>& adapters) {
  std::vector<NamedFolder> parsed;
  std::set<std::string> names = {"base"};
  for (const std::string& adapter : adapters) {
    const size_t equals = adapter.find('=');
    const bool named = equals != std::string::npos && !std::filesystem::is_directory(adapter);
    parsed.push_back(named ? NamedFolder{adapter.substr(0, equals), adapter.substr(equals + 1)}
                           : NamedFolder{"tuned", adapter});
    const std::string& name = parsed.back().name;
    if (!name.empty() && names.insert(name).second) continue;
    return absl::InvalidArgumentError(absl::StrCat("--adapter: ", adapter, ": the name '", name, "' is ",
                                                   name.empty()     ? "empty"
                                                   : name == "base" ? "the base model's"
                                                                    : "taken",
                                                   "; give each adapter a name of its own, as NAME=FOLDER"));
  }
  return parsed;
}

// A job's own template lies with its adapter. Prompts are rendered once for all adapters, so they have to agree.
absl::StatusOr<TemplateSources> TemplateOfAdapters(const std::vector<NamedFolder>& adapters) {
  TemplateSources sources;
  for (const NamedFolder& adapter : adapters) {
    LUTHIER_ASSIGN_OR_RETURN(TemplateSources of_adapter, ReadTemplateFiles(adapter.folder));
    if (of_adapter != sources && &adapter != &adapters.front()) {
      return absl::InvalidArgumentError(absl::StrCat("--adapter: ", adapter.name,
                                                     " was trained with another chat template than ",
                                                     adapters.front().name, "; load them one at a time"));
    }
    sources = std::move(of_adapter);
  }
  return sources;
}

absl::StatusOr<std::unique_ptr<Loaded>> Load(const std::string& base, const std::vector<NamedFolder>& adapters) {
  LUTHIER_ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(base));
  LUTHIER_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(base));
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights, LoadWeights(base, facts.config, at::kFloat, WeightUse::kFrozen));
  auto loaded = std::make_unique<Loaded>(
      Loaded{facts.config, std::move(tokenizer), std::nullopt, std::move(weights), {"base"}, {}, {}});
  LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {}));
  for (const NamedFolder& adapter : adapters) {
    loaded->names.push_back(adapter.name);
    LUTHIER_ASSIGN_OR_RETURN(Adapter read, ReadAdapter(adapter.folder, facts.config, &loaded->weights));
    LUTHIER_ASSIGN_OR_RETURN(loaded->models.emplace_back(), MakeTunedModel(loaded->config, loaded->weights, {&read}));
    loaded->adapters.push_back(std::move(read));
  }
  LUTHIER_ASSIGN_OR_RETURN(loaded->own_template, TemplateOfAdapters(adapters));
  LUTHIER_ASSIGN_OR_RETURN(loaded->chat_template, ChatTemplate::OfJob(base, loaded->own_template, /*date=*/""));
  return loaded;
}

struct GenerateArguments {
  std::string base;
  std::vector<std::string> adapters;
  std::string use;
  std::string system;
  std::string prompt;
  std::string input = "text";
  std::string output = "text";
  std::vector<std::string> stops;
  GenerateOptions options;
};

// What a model is asked, and which one; without a name all adapters, or the base where there is none.
struct Question {
  std::string prompt;
  std::string system;
  std::string adapter;
};

// A line of standard input.
absl::StatusOr<Question> ParseLine(const std::string& line, const GenerateArguments& arguments) {
  Question question{line, arguments.system, arguments.use};
  if (arguments.input == "text") return question;
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const std::map<std::string, std::string*> fields = {
      {"prompt", &question.prompt}, {"system", &question.system}, {"adapter", &question.adapter}};
  bool fits = json.is_object() && json.contains("prompt");
  for (auto field = json.begin(); fits && field != json.end(); ++field) {
    fits = fields.contains(field.key()) && field->is_string();
    if (fits) *fields.at(field.key()) = field->get<std::string>();
  }
  if (fits) return question;
  return absl::InvalidArgumentError(
      absl::StrCat(line,
                   " is no question; with --input json give {\"prompt\": \"…\"}, and where wanted the texts "
                   "\"adapter\" and \"system\""));
}

absl::StatusOr<std::vector<size_t>> ModelsToAsk(const Loaded& loaded, const std::string& name) {
  std::vector<size_t> models;
  if (name.empty()) {
    for (size_t i = loaded.names.size() > 1 ? 1 : 0; i < loaded.names.size(); ++i) models.push_back(i);
    return models;
  }
  const auto found = std::find(loaded.names.begin(), loaded.names.end(), name);
  if (found == loaded.names.end()) {
    return absl::InvalidArgumentError(absl::StrCat("adapter: '", name, "' is not loaded; give one of ",
                                                   absl::StrJoin(loaded.names, ", "), ", or load it with --adapter ",
                                                   name, "=FOLDER"));
  }
  models.push_back(static_cast<size_t>(found - loaded.names.begin()));
  return models;
}

absl::Status Answer(const Loaded& loaded, const GenerateArguments& arguments, const Question& question) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<size_t> models, ModelsToAsk(loaded, question.adapter));
  const RowEncoder encoder(loaded.tokenizer, loaded.template_or_null(), {});
  OrderedJson messages = OrderedJson::array();
  if (!question.system.empty()) messages.push_back({{"role", "system"}, {"content", question.system}});
  messages.push_back({{"role", "user"}, {"content", question.prompt}});
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, encoder.EncodeMessages(messages));
  GenerateOptions options = arguments.options;
  options.stop_ids = encoder.stop_ids();
  options.context = loaded.config.max_position_embeddings;
  const auto text_of = [&](const std::vector<int32_t>& answer) {
    return CutAtStop(loaded.tokenizer.Decode(answer, /*skip_special_tokens=*/true).value_or(""), arguments.stops);
  };
  if (!arguments.stops.empty()) options.is_complete = [&](const auto& answer) { return text_of(answer).stopped; };
  if (static_cast<int64_t>(ids.size()) >= options.context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt: has ", ids.size(),
                     " tokens with the template, which leaves no room for an answer in the "
                     "model's context of ",
                     options.context, "; give a shorter one"));
  }
  for (const size_t i : models) {
    const std::string text = text_of(Generate(*loaded.models[i], {ids}, options)[0]).text;
    if (arguments.output == "json") {
      std::cout << nlohmann::json{{"model", loaded.names[i]}, {"prompt", question.prompt}, {"answer", text}}.dump(
                       -1, ' ', false, nlohmann::json::error_handler_t::replace)
                << std::endl;
    } else {
      if (models.size() > 1) std::cout << loaded.names[i] << ": ";
      std::cout << text << std::endl;
    }
  }
  return absl::OkStatus();
}

absl::Status AnswerAll(const GenerateArguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<NamedFolder> adapters, ParseAdapters(arguments.adapters));
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, Load(arguments.base, adapters));
  if (!arguments.prompt.empty()) return Answer(*loaded, arguments, {arguments.prompt, arguments.system, arguments.use});
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    absl::StatusOr<Question> question = ParseLine(line, arguments);
    const absl::Status status = question.ok() ? Answer(*loaded, arguments, *question) : question.status();
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("standard input, line ", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// For flags: CLI11 puts the flag in front of what these say.
CLI::Validator Within(const NumberRange& range) {
  return CLI::Validator(
      [range](std::string& text) -> std::string {
        double value = 0;
        if (absl::SimpleAtod(text, &value) && range.Contains(value)) return "";
        return absl::StrCat(text, " is out of range; give ", range.words);
      },
      "");
}

CLI::Validator WholeNumber(int64_t low, int64_t high) {
  return CLI::Validator(
      [low, high](std::string& text) -> std::string {
        int64_t value = 0;
        if (absl::SimpleAtoi(text, &value) && value >= low && value <= high) return "";
        return absl::StrCat(text, " is out of range; give a whole number from ", low, " to ", high);
      },
      "");
}

constexpr int64_t kMostTokens = int64_t{1} << 24, kMostSeed = int64_t{1} << 53;
constexpr NumberRange kTemperature = {0, 100, true, true, "a number from 0 (greedy) to 100"};
constexpr NumberRange kTopP = {0, 1, false, true, "a number above 0 and at most 1"};
constexpr NumberRange kPenalty = {0, 100, false, true, "a number above 0 (1 changes nothing) and at most 100"};

void AddSamplingFlags(CLI::App& command, GenerateArguments& generate) {
  GenerateOptions& options = generate.options;
  command.add_option("--max-new-tokens", options.max_new_tokens, "Tokens to generate at most")
      ->check(WholeNumber(1, kMostTokens))
      ->capture_default_str();
  command.add_option("--temperature", options.temperature, "0 is greedy")
      ->check(Within(kTemperature))
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "Nucleus sampling")->check(Within(kTopP))->capture_default_str();
  command.add_option("--top-k", options.top_k, "0 keeps all tokens")
      ->check(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  command
      .add_option("--repetition-penalty", options.repetition_penalty,
                  "Above 1: tokens of prompt and answer become less likely")
      ->check(Within(kPenalty))
      ->capture_default_str();
  command.add_option("--stop", generate.stops, "Text that ends an answer, and is no part of it; may be repeated")
      ->check([](const std::string& text) { return text.empty() ? std::string("is empty; give a text") : ""; });
  command.add_option("--seed", options.seed, "Seed of sampling")
      ->check(WholeNumber(0, kMostSeed))
      ->capture_default_str();
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
  std::vector<NamedFolder> adapters;
  if (!arguments.adapter.empty()) adapters.push_back({"tuned", arguments.adapter});
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, Load(arguments.base, adapters));
  LUTHIER_ASSIGN_OR_RETURN(const TaskType task, ParseTaskType(arguments.task));
  const RowEncoder encoder(loaded->tokenizer, loaded->template_or_null(), {});
  LUTHIER_ASSIGN_OR_RETURN(const EvaluationSplit split, LoadSplit("test", arguments.data, encoder, arguments.max_rows));
  if (split.unscored > 0) {
    std::cerr << "warning: " << split.unscored
              << " rows are not scored by their answers; the first: " << split.why_unscored << "\n";
  }
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

absl::Status Export(const Conversion& conversion) {
  LUTHIER_RETURN_IF_ERROR(
      CheckExportPlace("--out", conversion.place, {{"--base", conversion.base}, {"--adapter", conversion.adapter}}));
  return Convert(conversion);
}

int Main(int argc, char** argv) {
  KeepHeapPages();
  CLI::App app{"Trains LoRA adapters or whole models, and tries them out. Needs no server."};
  app.require_subcommand(1);

  RunArguments run;
  CLI::App* run_command =
      app.add_subcommand("run",
                         "Train one attempt, or export; JSON lines on standard output (docs/trainer-protocol.md). "
                         "Started again with the same --out it goes on from the last checkpoint.");
  run_command->add_option("--spec", run.spec, "Spec file (JSON)")->required()->check(CLI::ExistingFile);
  run_command->add_option("--out", run.out, "Folder for checkpoints, metrics and the artifact")->required();
  run_command->add_flag("--die-with-parent", run.die_with_parent, "End when the parent process ends (agents use this)");
  CLI::Option* node_rank =
      run_command
          ->add_option("--node-rank", run.node.rank, "Which of the spec's resources.nodes this node is, from 0 on")
          ->check(WholeNumber(0, 63));
  CLI::Option* meeting =
      run_command->add_option("--meeting", run.node.meeting, "HOST:PORT at which node 0 waits for the others");
  CLI::Option* address =
      run_command->add_option("--address", run.node.address, "Host by which the other nodes reach this one");
  node_rank->needs(meeting, address);
  meeting->needs(node_rank);
  address->needs(node_rank);
  std::vector<int> place;
  run_command->add_option("--rank", place, "Rank, descriptor of MakeRendezvous")
      ->expected(1, 2)
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
  generate_command->add_option("--use", generate.use,
                               "Answer with the adapter of this name only, or with `base`; default: with each");
  generate_command->add_option("--system", generate.system, "System message");
  generate_command->add_option("--prompt", generate.prompt, "User message");
  AddSamplingFlags(*generate_command, generate);
  generate_command
      ->add_option("--input", generate.input,
                   "text: a line is a prompt; json: it is {\"prompt\": …, \"adapter\": NAME, \"system\": …}")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
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
      ->check(WholeNumber(1, kMostTokens))
      ->capture_default_str();

  Conversion exporting;
  CLI::App* export_command =
      app.add_subcommand("export", "Write a tuned model in another form; the files are read again and compared.");
  export_command->add_option("--base", exporting.base, "Base model folder")->required();
  export_command->add_option("--adapter", exporting.adapter, "Adapter folder in PEFT format")->required();
  export_command
      ->add_option("--format", exporting.form,
                   "merged: a model folder in Hugging Face format; gguf: an adapter for llama.cpp")
      ->required()
      ->check(CLI::IsMember({"merged", "gguf"}));
  export_command
      ->add_option("--out", exporting.place,
                   "Folder (merged) or file (gguf) to write; replaced only if it is an earlier export")
      ->required();

  app.add_subcommand("version", "Version and device.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!place.empty()) run.place = RankPlace{.rank = place[0], .rendezvous = place.size() > 1 ? place[1] : -1};
  if (run_command->parsed()) return RunCommand(run);
  if (plan_command->parsed()) {
    const absl::Status status = PlanJob(plan);
    return status.ok() ? 0 : Fail(status);
  }
  if (generate_command->parsed()) {
    const absl::Status status = AnswerAll(generate);
    return status.ok() ? 0 : Fail(status);
  }
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
