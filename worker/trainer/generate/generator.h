// Answers: batched decoding with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "worker/trainer/models/model.h"

namespace luthier {

struct GenerateOptions {
  int64_t max_new_tokens = 64;
  double temperature = 0;  // 0: greedy, the most probable token
  double top_p = 1;        // sampling only: the smallest set of tokens with this probability
  int64_t top_k = 0;       // sampling only: at most so many tokens; 0: all
  uint64_t seed = 1;
  // Above 1 makes tokens less likely that are in the prompt or the answer already, below 1 more likely: their logits
  // are divided by it where they are positive and multiplied where they are not, as transformers' processor does. 1:
  // nothing.
  double repetition_penalty = 1;
  std::vector<int32_t> stop_ids;  // generation of a row ends with one of them, which is not part of the answer
  int64_t context = 0;            // prompt and answer together have at most so many tokens; 0: no limit
  // Asked after every token of a row with its answer so far: true ends the row. For stop strings.
  std::function<bool(const std::vector<int32_t>& answer)> is_complete;
  // Asked before every token: true ends all rows where they are.
  std::function<bool()> interrupted = [] { return false; };
};

// Continues every prompt (at least one token each) through adapter `adapter` of the model. Answers come in the order of
// the prompts; that of a prompt which fills the context is empty. A row never sees another one and draws with a
// generator of its own, from `seed`, so an answer does not depend on its neighbours beyond rounding.
std::vector<std::vector<int32_t>> Generate(const DecoderModel& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options, size_t adapter = 0);

// `text` up to the first of the stop strings in it, and whether there is one. A string may lie across tokens, so only
// the text of a whole answer tells.
struct StoppedText {
  std::string text;
  bool stopped = false;
};
StoppedText CutAtStop(std::string text, const std::vector<std::string>& stops);

}  // namespace luthier
