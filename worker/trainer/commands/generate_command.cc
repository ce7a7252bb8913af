// luthier-trainer generate: answers of a model, or of several adapters on one base.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/base/utf8.h"
#include "lib/dataset/encode.h"
#include "lib/plan/job_spec.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/commands/loaded_models.h"
#include "worker/trainer/commands/number_flags.h"
#include "worker/trainer/generate/generator.h"

namespace luthier {
namespace {

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

// What a model is asked, and which one; without a name all adapters, or the base where there is none.
struct Question {
  std::string prompt;
  std::string system;
  std::string adapter;
};

// The template and the tokenizer take nothing else.
absl::Status CheckUtf8(const std::string& text) {
  const size_t wrong = FirstIllFormed(text);
  if (wrong == std::string::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("invalid UTF-8 at byte ", wrong + 1, "; save it as UTF-8"));
}

// A line of standard input.
absl::StatusOr<Question> ParseLine(const std::string& line, const GenerateArguments& arguments) {
  LUTHIER_RETURN_IF_ERROR(CheckUtf8(line));
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

absl::StatusOr<std::vector<size_t>> ModelsToAsk(const LoadedModels& loaded, const std::string& name) {
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

absl::Status Answer(const LoadedModels& loaded, const GenerateArguments& arguments, const Question& question) {
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
  for (const auto& [flag, text] : {std::pair("--system", arguments.system), std::pair("--prompt", arguments.prompt)}) {
    if (const absl::Status status = CheckUtf8(text); !status.ok())
      return absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message()));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<NamedFolder> adapters, ParseAdapters(arguments.adapters));
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, LoadModels(arguments.base, adapters));
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

constexpr int64_t kMostSeed = int64_t{1} << 53;  // what a double, and so JSON, holds exactly
constexpr NumberRange kTemperature = {0, 100, true, true, "a number from 0 (greedy) to 100"};
constexpr NumberRange kTopP = {0, 1, false, true, "a number above 0 and at most 1"};
constexpr NumberRange kPenalty = {0, 100, false, true, "a number above 0 (1 changes nothing) and at most 100"};

void AddSamplingFlags(CLI::App& command, GenerateArguments& generate) {
  GenerateOptions& options = generate.options;
  command.add_option("--max-new-tokens", options.max_new_tokens, "Tokens to generate at most")
      ->check(WholeNumber(1, kMaxTokens))
      ->capture_default_str();
  command.add_option("--temperature", options.temperature, "0 is greedy")
      ->check(Within(kTemperature))
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "Nucleus sampling")->check(Within(kTopP))->capture_default_str();
  command.add_option("--top-k", options.top_k, "0 keeps all tokens")
      ->check(WholeNumber(0, kMaxTokens))
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

}  // namespace

void AddGenerateCommand(CLI::App& app, Action& action) {
  const auto generate = std::make_shared<GenerateArguments>();
  CLI::App* command = app.add_subcommand("generate", "Answer a prompt, or one line of standard input after another.");
  command->add_option("--base", generate->base, "Base model folder")->required();
  command->add_option("--adapter", generate->adapters,
                      "Adapter folder, or NAME=FOLDER; may be repeated: all share one base");
  command->add_option("--use", generate->use,
                      "Answer with the adapter of this name only, or with `base`; default: with each");
  command->add_option("--system", generate->system, "System message");
  command->add_option("--prompt", generate->prompt, "User message");
  AddSamplingFlags(*command, *generate);
  command
      ->add_option("--input", generate->input,
                   "text: a line is a prompt; json: it is {\"prompt\": …, \"adapter\": NAME, \"system\": …}")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->add_option("-o,--output", generate->output, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->callback([&action, generate] {
    action = [generate] {
      const absl::Status status = AnswerAll(*generate);
      const int exit_code = ExitCodeOf(status);
      return absl::IsInvalidArgument(status) ? kWrongUsage : exit_code;
    };
  });
}

}  // namespace luthier
