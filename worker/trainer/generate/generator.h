// Answers: batched decoding with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/trainer/models/model.h"

namespace luthier {

struct GenerateOptions {
  int64_t max_new_tokens = 64;
  double temperature = 0;  // 0: greedy, the most probable token
  double top_p = 1;        // sampling only: the smallest set of tokens with this probability
  int64_t top_k = 0;       // sampling only: at most so many tokens; 0: all
  uint64_t seed = 1;
  std::vector<int32_t> stop_ids;  // generation of a row ends with one of them, which is not part of the answer
  int64_t context = 0;            // prompt and answer together have at most so many tokens; 0: no limit
  std::function<bool()> interrupted = [] {
    return false;
  };  // asked before every token: true ends all rows where they are
};

// Continues every prompt (at least one token each) through adapter `adapter` of the model. Answers come in the order of
// the prompts; that of a prompt which fills the context is empty. A row never sees another one, so an answer does not
// depend on its neighbours beyond rounding.
std::vector<std::vector<int32_t>> Generate(const DecoderModel& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options, size_t adapter = 0);

}  // namespace luthier
