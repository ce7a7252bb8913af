// luthier-trainer evaluate: loss and scored answers of a file.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/dataset/encode.h"
#include "lib/dataset/task.h"
#include "lib/plan/job_spec.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/commands/loaded_models.h"
#include "worker/trainer/commands/number_flags.h"
#include "worker/trainer/train/evaluation.h"

namespace luthier {
namespace {

// Of a file, whose answers are generated.
constexpr int64_t kMostScoredRows = 1'000'000;

struct EvaluateArguments {
  std::string base;
  std::string adapter;
  std::string data;
  std::string task = "chat";
  int64_t max_new_tokens = 64;
};

absl::Status EvaluateFile(const EvaluateArguments& arguments) {
  std::vector<NamedFolder> adapters;
  if (!arguments.adapter.empty()) adapters.push_back({"tuned", arguments.adapter});
  LUTHIER_ASSIGN_OR_RETURN(const auto loaded, LoadModels(arguments.base, adapters));
  LUTHIER_ASSIGN_OR_RETURN(const TaskType task, ParseTaskType(arguments.task));
  const RowEncoder encoder(loaded->tokenizer, loaded->template_or_null(), {});
  LUTHIER_ASSIGN_OR_RETURN(const EvaluationSplit split, LoadSplit("test", arguments.data, encoder, kMostScoredRows));
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

}  // namespace

void AddEvaluateCommand(CLI::App& app, Action& action) {
  const auto evaluate = std::make_shared<EvaluateArguments>();
  CLI::App* command = app.add_subcommand("evaluate", "Loss, token accuracy and scored answers of a file.");
  command->add_option("--base", evaluate->base, "Base model folder")->required();
  command->add_option("--adapter", evaluate->adapter, "Adapter folder");
  command->add_option("--data", evaluate->data, "JSONL file")->required()->check(CLI::ExistingFile);
  command->add_option("--task", evaluate->task, "Kind of task, for scoring")->capture_default_str();
  command->add_option("--max-new-tokens", evaluate->max_new_tokens, "Tokens to generate a row at most")
      ->check(WholeNumber(1, kMaxTokens))
      ->capture_default_str();
  command->callback([&action, evaluate] { action = [evaluate] { return ExitCodeOf(EvaluateFile(*evaluate)); }; });
}

}  // namespace luthier
