#include "worker/trainer/generate/generator.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/model_fixture.h"

namespace luthier {
namespace {

// The most probable continuation, every token from a whole forward pass over the row alone.
std::vector<int32_t> ContinueWithoutCache(const DecoderModel& model, std::vector<int32_t> row, int64_t new_tokens) {
  at::NoGradGuard no_grad;
  std::vector<int32_t> answer;
  for (int64_t i = 0; i < new_tokens; ++i) {
    answer.push_back(static_cast<int32_t>(Logits(model, BatchOf({row}))[-1].argmax().item<int64_t>()));
    row.push_back(answer.back());
  }
  return answer;
}

// Windows shorter than the rows, layers without positions, soft-caps, experts, and Phi-3's rows that grow beyond the
// length at which its frequencies change.
TEST(GeneratorTest, TheCacheChangesNothingInAnyFamily) {
  constexpr int64_t kNewTokens = 12;
  const std::vector<std::vector<int32_t>> prompts = {{1, 7, 30}, {1}, {1, 3, 9, 27, 12, 5, 20, 8}, {4, 4}};
  for (const std::string& family : FixtureFamilies()) {
    const ModelFixture fixture(family);
    GenerateOptions options;
    options.max_new_tokens = kNewTokens;
    const auto answers = Generate(*fixture.tuned, prompts, options);
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(answers[i], ContinueWithoutCache(*fixture.tuned, prompts[i], kNewTokens)) << family << ", prompt " << i;
    }
  }
}

TEST(GeneratorTest, ARowEndsAtItsStopTokenWithoutIt) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 6;
  const auto whole = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  options.stop_ids = {whole[0][2]};
  const auto stopped = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  const auto end = std::find(whole[0].begin(), whole[0].end(), whole[0][2]);
  EXPECT_EQ(stopped[0], std::vector<int32_t>(whole[0].begin(), end));
}

TEST(GeneratorTest, PromptAndAnswerStayInsideTheContext) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 6;
  const auto whole = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  options.context = 5;
  const auto bounded = Generate(*fixture.tuned, {{1, 7, 30}, {1, 2, 3, 4, 5}, {1}}, options);
  EXPECT_EQ(bounded[0], std::vector<int32_t>(whole[0].begin(), whole[0].begin() + 2));
  EXPECT_TRUE(bounded[1].empty());
  EXPECT_EQ(bounded[2], std::vector<int32_t>(whole[1].begin(), whole[1].begin() + 4));
}

TEST(GeneratorTest, MoreTokensThanTheContextHoldsTakeNoMemory) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.context = 5;
  options.max_new_tokens = 6;
  const auto few = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  options.max_new_tokens = int64_t{1} << 40;
  EXPECT_EQ(Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options), few);
}

TEST(GeneratorTest, AnInterruptEndsRowsWhereTheyAre) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 100;
  int asked = 0;
  options.interrupted = [&] { return ++asked > 3; };
  EXPECT_EQ(Generate(*fixture.tuned, {{1, 7, 30}}, options)[0].size(), 3u);
}

// transformers' RepetitionPenaltyLogitsProcessor, token by token from a whole forward pass.
TEST(GeneratorTest, TheRepetitionPenaltyIsThatOfTransformers) {
  at::NoGradGuard no_grad;
  const ModelFixture fixture("llama");
  for (const double penalty : {1.3, 50.0, 0.5}) {
    GenerateOptions options;
    options.max_new_tokens = 8;
    options.repetition_penalty = penalty;
    const std::vector<std::vector<int32_t>> prompts = {{1, 7, 30, 7}, {4, 4}};
    const auto answers = Generate(*fixture.tuned, prompts, options);
    for (size_t i = 0; i < prompts.size(); ++i) {
      std::vector<int32_t> row = prompts[i];
      for (const int32_t id : answers[i]) {
        const Tensor logits = Logits(*fixture.tuned, BatchOf({row}))[-1].clone();
        for (int64_t token = 0; token < logits.size(0); ++token) {
          if (std::find(row.begin(), row.end(), token) == row.end()) continue;
          const double score = logits[token].item<double>();
          logits[token] = score < 0 ? score * penalty : score / penalty;
        }
        EXPECT_EQ(id, logits.argmax().item<int64_t>()) << penalty << ", prompt " << i << ", token " << row.size();
        row.push_back(id);
      }
    }
  }
}

TEST(GeneratorTest, ARowEndsWhereItIsComplete) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 6;
  const auto whole = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  options.is_complete = [&](const std::vector<int32_t>& answer) {
    return answer.size() == 2 && answer[0] == whole[0][0];
  };
  const auto answers = Generate(*fixture.tuned, {{1, 7, 30}, {1}}, options);
  EXPECT_EQ(answers[0], std::vector<int32_t>(whole[0].begin(), whole[0].begin() + 2));
  EXPECT_EQ(answers[1],
            whole[0][0] == whole[1][0] ? std::vector<int32_t>(whole[1].begin(), whole[1].begin() + 2) : whole[1]);
}

TEST(GeneratorTest, TextIsCutAtTheFirstStopString) {
  EXPECT_EQ(CutAtStop("one two three", {"three", "two"}).text, "one ");
  EXPECT_TRUE(CutAtStop("one two three", {"three", "two"}).stopped);
  EXPECT_EQ(CutAtStop("one", {"two"}).text, "one");
  EXPECT_FALSE(CutAtStop("one", {}).stopped);
}

// A sampled answer is the same alone, first, last, and in another batch of 32.
TEST(GeneratorTest, ASampledAnswerDoesNotDependOnItsNeighbours) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 12;
  options.temperature = 1.5;
  options.top_p = 0.95;
  options.top_k = 30;
  const std::vector<int32_t> prompt = {1, 7, 30};
  const auto alone = Generate(*fixture.tuned, {prompt}, options)[0];
  EXPECT_EQ(Generate(*fixture.tuned, {prompt, {4, 4}, {9}}, options)[0], alone);
  EXPECT_EQ(Generate(*fixture.tuned, {{4, 4}, {9}, prompt}, options)[2], alone);
  std::vector<std::vector<int32_t>> many(40, {1, 2});
  many.push_back(prompt);
  EXPECT_EQ(Generate(*fixture.tuned, many, options)[40], alone);
}

TEST(GeneratorTest, TheLowestTemperaturesAreGreedy) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 6;
  const auto greedy = Generate(*fixture.tuned, {{1, 7, 30}}, options);
  for (const double temperature : {1e-300, 1e-40, 1e-19}) {
    options.temperature = temperature;
    EXPECT_EQ(Generate(*fixture.tuned, {{1, 7, 30}}, options), greedy) << temperature;
  }
}

TEST(GeneratorTest, SamplingFollowsItsSeed) {
  const ModelFixture fixture("llama");
  GenerateOptions options;
  options.max_new_tokens = 20;
  options.temperature = 2;
  const std::vector<std::vector<int32_t>> prompts = {{1, 7, 30}};
  const auto first = Generate(*fixture.tuned, prompts, options);
  EXPECT_EQ(Generate(*fixture.tuned, prompts, options), first);
  options.seed = 2;
  EXPECT_NE(Generate(*fixture.tuned, prompts, options), first);
}

}  // namespace
}  // namespace luthier
