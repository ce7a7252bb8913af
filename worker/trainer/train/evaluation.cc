#include "worker/trainer/train/evaluation.h"

#include <algorithm>
#include <filesystem>
#include <variant>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/batches.h"
#include "worker/trainer/generate/generator.h"
#include "worker/trainer/train/batch.h"

namespace luthier {
namespace {

// The last thing said before the answer.
std::string LastTurn(const Row& row) {
  if (const auto* completion = std::get_if<CompletionRow>(&row.content)) return completion->prompt;
  const auto* chat = std::get_if<ChatRow>(&row.content);
  if (chat == nullptr) return "";
  for (auto message = chat->messages.rbegin(); message != chat->messages.rend(); ++message) {
    if (message->value("role", "") == "user" && message->contains("content") && (*message)["content"].is_string()) {
      return (*message)["content"];
    }
  }
  return "";
}

// Of every row.
TokenScore ScoreTokens(const DecoderModel& model, const EvaluationSplit& split, const EvaluationOptions& options) {
  std::vector<int32_t> lengths;
  for (const Example& example : split.examples) lengths.push_back(static_cast<int32_t>(example.ids.size()));
  TokenScore totals;
  for (const MicroBatch& rows : PackBestFit(lengths, options.micro_batch_tokens)) {
    if (options.interrupted()) break;
    std::vector<const Example*> examples;
    for (int32_t row : rows) examples.push_back(&split.examples[static_cast<size_t>(row)]);
    const TokenScore score = ScoreTrainedTokens(model, MakePackedBatch(examples, model.device()));
    totals.loss_sum += score.loss_sum;
    totals.right += score.right;
    totals.tokens += score.tokens;
  }
  return totals;
}

void ScoreAnswers(const DecoderModel& model, const EvaluationSplit& split, const Tokenizer& tokenizer,
                  const std::vector<int32_t>& stop_ids, const EvaluationOptions& options, EvaluationResult& result) {
  std::vector<std::vector<int32_t>> prompts;
  for (const Prompt& prompt : split.prompts) prompts.push_back(prompt.ids);
  GenerateOptions generate;
  generate.max_new_tokens = options.max_new_tokens;
  generate.stop_ids = stop_ids;
  generate.context = options.context;
  generate.interrupted = options.interrupted;
  const auto answers = Generate(model, prompts, generate);
  ScoreTotals totals;
  for (size_t i = 0; i < answers.size(); ++i) {
    const std::string answer = tokenizer.Decode(answers[i], /*skip_special_tokens=*/true).value_or("");
    totals.Add(ScoreAnswer(options.task, split.prompts[i].expected, answer));
    if (result.examples.size() < options.max_examples) {
      result.examples.push_back({split.last_turns[i], split.prompts[i].expected, answer});
    }
  }
  result.scored_rows = static_cast<int64_t>(answers.size());
  result.exact_match = totals.exact_match();
  result.json_equality = totals.json_equality();
  if (HasFields(options.task)) result.field_f1 = totals.field_f1();
}

}  // namespace

absl::StatusOr<EvaluationSplit> MakeSplit(const std::string& name, const std::string& path,
                                          std::vector<Example> examples, const RowEncoder& encoder, int64_t max_rows) {
  EvaluationSplit split;
  split.name = name;
  split.examples = std::move(examples);
  const auto add = [&](const Row& row, absl::StatusOr<Prompt> prompt) {
    if (prompt.ok()) {
      split.prompts.push_back(*std::move(prompt));
      split.last_turns.push_back(LastTurn(row));
    } else if (split.unscored++ == 0) {
      const std::string file = std::filesystem::path(path).filename().string();
      split.why_unscored = absl::StrCat(RowPosition(file, row.line, row.unit), ": ", prompt.status().message());
    }
  };
  LUTHIER_RETURN_IF_ERROR(ForEachPrompt(path, encoder, max_rows, add));
  return split;
}

absl::StatusOr<EvaluationSplit> LoadSplit(const std::string& name, const std::string& path, const RowEncoder& encoder,
                                          int64_t max_rows) {
  LUTHIER_ASSIGN_OR_RETURN(LoadedExamples loaded, LoadExamples({path}, encoder));
  return MakeSplit(name, path, std::move(loaded.examples), encoder, max_rows);
}

std::string UsableMetric(const std::string& metric, TaskType task, const EvaluationSplit& split) {
  if (metric == "loss" || split.prompts.empty()) return "loss";
  const bool json = std::any_of(split.prompts.begin(), split.prompts.end(), [&](const Prompt& prompt) {
    return ScoreAnswer(task, prompt.expected, prompt.expected).json_equal.has_value();
  });
  return metric == "json_equality" && !json ? "exact_match" : metric;
}

std::optional<EvaluationResult> Evaluate(const DecoderModel& model, const EvaluationSplit& split,
                                         const Tokenizer& tokenizer, const std::vector<int32_t>& stop_ids,
                                         const EvaluationOptions& options) {
  at::NoGradGuard no_grad;
  EvaluationResult result;
  result.rows = static_cast<int64_t>(split.examples.size());
  const TokenScore totals = ScoreTokens(model, split, options);
  const auto tokens = static_cast<double>(std::max<int64_t>(totals.tokens, 1));
  result.loss = totals.loss_sum / tokens;
  result.token_accuracy = static_cast<double>(totals.right) / tokens;
  if (options.generate && !split.prompts.empty()) ScoreAnswers(model, split, tokenizer, stop_ids, options, result);
  if (options.interrupted()) return std::nullopt;  // whatever was cut short is not a score
  return result;
}

nlohmann::json ToJson(const EvaluationResult& result) {
  nlohmann::json json = {{"rows", result.rows}, {"loss", result.loss}, {"token_accuracy", result.token_accuracy}};
  if (result.exact_match) json["exact_match"] = *result.exact_match;
  if (result.scored_rows > 0) json["scored_rows"] = result.scored_rows;
  if (result.json_equality) json["json_equality"] = *result.json_equality;
  if (result.field_f1) json["field_f1"] = *result.field_f1;
  for (const EvaluationExample& example : result.examples) {
    json["examples"].push_back(
        {{"prompt", example.prompt}, {"expected", example.expected}, {"answer", example.answer}});
  }
  return json;
}

}  // namespace luthier
