// Bases that do not know the tokens of their rows (bugs 24 and 27).
#include "worker/trainer/train/token_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_join.h"
#include "lib/checkpoint/safetensors.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kEndOfTurn = 2;  // <|im_end|> of the tiny base

class TokenChecksTest : public ::testing::Test {
 protected:
  TokenChecksTest() {
    WriteText(folder_.path() + "/train.jsonl", ChatLine("one", "two") + ChatLine("three", "four \xF0\x9F\x98\x80"));
    spec_.base_model = folder_.path() + "/base";
    spec_.train = {{.path = folder_.path() + "/train.jsonl"}};
    spec_.recipe.tuning = "lora";
    WriteBase(json::object());
  }

  // With random weights, but for the rows that `change` changes.
  void WriteBase(const json& config_changes, const std::function<void(NamedTensors&)>& change = {}) {
    WriteTinyBase(spec_.base_model, config_changes);
    NamedTensors weights = RandomWeights(*ReadModelConfig(spec_.base_model), 1);
    if (change) change(weights);
    std::vector<TensorToWrite> views;
    for (const auto& [name, tensor] : weights) views.push_back(ToWrite(name, tensor));
    ASSERT_TRUE(WriteSafetensors(spec_.base_model + "/model.safetensors", views, {}).ok());
  }

  std::string Warnings() {
    const absl::StatusOr<std::unique_ptr<luthier::Run>> run = Prepare(spec_, "");
    return run.ok() ? absl::StrJoin((*run)->plan.warnings, "\n") : run.status().ToString();
  }

  TempFolder folder_;
  TrainerSpec spec_;
};

TEST_F(TokenChecksTest, NamesSpecialTokensThatNeitherTheBaseNorTheRunKnows) {
  EXPECT_THAT(Warnings(), Not(HasSubstr("never learned")));
  WriteBase(json::object(),
            [](NamedTensors& weights) { weights.at("model.embed_tokens.weight")[kEndOfTurn].mul_(1e-3); });
  EXPECT_THAT(Warnings(), AllOf(HasSubstr("never learned '<|im_end|>', which"),
                                HasSubstr("lora.modules_to_save: [embed_tokens, lm_head]")));
  spec_.recipe.lora.modules_to_save = {"embed_tokens"};  // the head is a copy of what the base has
  EXPECT_THAT(Warnings(), HasSubstr("lora.modules_to_save: [lm_head]"));
  spec_.recipe.lora.modules_to_save = {"embed_tokens", "lm_head"};
  EXPECT_THAT(Warnings(), Not(HasSubstr("never learned")));
  spec_.recipe.lora.modules_to_save = {};
  spec_.recipe.tuning = "full";
  EXPECT_THAT(Warnings(), Not(HasSubstr("never learned")));
  spec_.recipe.training.freeze = {"model.embed_tokens"};
  EXPECT_THAT(Warnings(), HasSubstr("take embed_tokens, lm_head out of training.freeze"));
}

TEST_F(TokenChecksTest, SaysThatNoRowTrainsTheEndOfAnAnswer) {
  EXPECT_THAT(Warnings(), Not(HasSubstr("will not learn to stop")));
  spec_.recipe.chat_template =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
      "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}";
  EXPECT_THAT(Warnings(), HasSubstr("no row trains the end of an answer ('<|im_end|>'), so the model will not learn"));
}

TEST_F(TokenChecksTest, LooksAtAHeadOfItsOwnToo) {
  WriteBase({{"tie_word_embeddings", false}},
            [](NamedTensors& weights) { weights.at("lm_head.weight")[kEndOfTurn].zero_(); });
  EXPECT_THAT(Warnings(), HasSubstr("lora.modules_to_save: [lm_head]"));
}

TEST_F(TokenChecksTest, ATokenWithoutAnEmbeddingIsRefusedByLineAndName) {
  WriteBase({{"vocab_size", 200}});
  EXPECT_THAT(Warnings(),
              AllOf(HasSubstr("train.jsonl:2: token '"), HasSubstr("has the number 243, and the model has 200")));
}

// Else a run of hours would end at its first evaluation.
TEST_F(TokenChecksTest, SoIsOneOfAPartThatIsOnlyEvaluated) {
  WriteBase({{"vocab_size", 200}});
  WriteText(folder_.path() + "/train.jsonl", ChatLine("one", "two"));
  for (std::string TrainerSpec::* part : {&TrainerSpec::validation, &TrainerSpec::test}) {
    spec_.validation = spec_.test = "";
    spec_.*part = folder_.path() + "/other.jsonl";
    WriteText(spec_.*part, ChatLine("three", "four \xF0\x9F\x98\x80"));
    EXPECT_THAT(Warnings(), AllOf(HasSubstr("other.jsonl:1: token '"), HasSubstr("the model has 200")));
  }
}

}  // namespace
}  // namespace luthier
