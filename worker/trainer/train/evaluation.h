// How good a model is on rows that it is not trained on.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/dataset/encode.h"
#include "lib/dataset/score.h"
#include "lib/dataset/validate.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/models/model.h"

namespace luthier {

// One part of a dataset, encoded once and evaluated often.
struct EvaluationSplit {
  std::string name;  // validation, test
  std::vector<Example> examples;
  std::vector<Prompt> prompts;          // of the rows that have an answer, at most max_rows
  std::vector<std::string> last_turns;  // what a person would read as the question, one a prompt
  int64_t unscored = 0;                 // rows with an answer that the template makes no prompt of
  std::string why_unscored;             // of the first of them, with file and line
};

struct EvaluationOptions {
  TaskType task = TaskType::kChat;
  int64_t micro_batch_tokens = 2048;
  int64_t max_new_tokens = 64;
  bool generate = true;     // score generated answers, not only the loss
  size_t max_examples = 0;  // answers to keep for people
  int64_t context = 0;      // of the model; 0: no limit. A prompt that fills it is answered by nothing
  std::function<bool()> interrupted = [] { return false; };  // asked between micro-batches and tokens
};

struct EvaluationExample {
  std::string prompt, expected, answer;
};

struct EvaluationResult {
  int64_t rows = 0;
  double loss = 0;            // mean over trained tokens, nats
  double token_accuracy = 0;  // part of trained tokens that are the model's first choice
  std::optional<double> exact_match;
  std::optional<double> json_equality;  // where JSON is expected
  std::optional<double> field_f1;       // tasks whose answers have fields
  int64_t scored_rows = 0;              // whose generated answers those are of
  std::vector<EvaluationExample> examples;
};

// The split of the rows of a file, of which `examples` are already encoded. `max_rows` bounds the rows that are scored
// by generation.
absl::StatusOr<EvaluationSplit> MakeSplit(const std::string& name, const std::string& path,
                                          std::vector<Example> examples, const RowEncoder& encoder, int64_t max_rows);

// The same with the rows encoded by `encoder`.
absl::StatusOr<EvaluationSplit> LoadSplit(const std::string& name, const std::string& path, const RowEncoder& encoder,
                                          int64_t max_rows);

// `metric`, or where the rows of the split do not have it (as evaluation.metric: no answers, or none that is JSON) the
// next best one: exact_match, or loss.
std::string UsableMetric(const std::string& metric, TaskType task, const EvaluationSplit& split);

// Nothing if it was interrupted.
std::optional<EvaluationResult> Evaluate(const DecoderModel& model, const EvaluationSplit& split,
                                         const Tokenizer& tokenizer, const std::vector<int32_t>& stop_ids,
                                         const EvaluationOptions& options);

// The fields of an `evaluation` event (docs/trainer-protocol.md) that the result fills.
nlohmann::json ToJson(const EvaluationResult& result);

}  // namespace luthier
