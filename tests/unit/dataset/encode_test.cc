#include "lib/dataset/encode.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"
#include "tests/unit/dataset/fixture.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The tokens that are trained, as text, with runs parted by '|'.
std::string Trained(const Tokenizer& tokenizer, const Example& example) {
  std::string text;
  for (size_t t = 0; t < example.ids.size(); ++t) {
    if (!example.trained[t]) continue;
    if (t > 0 && !example.trained[t - 1] && !text.empty()) text += "|";
    text += tokenizer.Decode(std::vector<int32_t>{example.ids[t]}, false).value();
  }
  return text;
}

constexpr char kTwoTurns[] =
    R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"},
                     {"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}]})";

class EncodeTest : public ::testing::Test {
 protected:
  absl::StatusOr<Example> Encode(const std::string& chat_template, const std::string& line,
                                 EncodeOptions options = {}) {
    const ChatTemplate compiled = Compiled(chat_template);
    return RowEncoder(tokenizer_, &compiled, options).Encode(ParseRow(line, 1).value());
  }
  std::string TrainedText(const std::string& chat_template, const std::string& line, EncodeOptions options = {}) {
    const absl::StatusOr<Example> example = Encode(chat_template, line, options);
    return example.ok() ? Trained(tokenizer_, *example) : example.status().ToString();
  }

  const Tokenizer tokenizer_ = FixtureTokenizer();
};

TEST_F(EncodeTest, TrainsAssistantTurnsWithTheirEndAlikeWithAndWithoutGenerationTags) {
  for (const char* chat_template : {kChatMl, kTaggedChatMl}) {
    EXPECT_EQ(TrainedText(chat_template, kTwoTurns), "one<|im_end|>|two<|im_end|>");
  }
}

// Stock templates have no {% generation %}: the mask must not be empty for that.
TEST_F(EncodeTest, MarksTheVeryTokensOfTheAnswer) {
  const Example example = Encode(kChatMl, kTwoTurns).value();
  ASSERT_EQ(example.ids.size(), example.trained.size());
  EXPECT_EQ(tokenizer_.Decode(example.ids, false).value(),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n");
  EXPECT_EQ(example.TrainedTokens(), 8);  // o n e <|im_end|> t w o <|im_end|>
}

// In the fixture, pad and EOS are one token, which many trainers leave out of the loss; the model
// then never stops.
TEST_F(EncodeTest, TrainsTheEndOfTextAlthoughItIsThePaddingTokenToo) {
  ASSERT_EQ(tokenizer_.special_tokens().eos, tokenizer_.special_tokens().pad);
  EXPECT_EQ(TrainedText(kChatMl, R"({"prompt": "a", "completion": "b"})"), "b<|endoftext|>");
  EXPECT_EQ(TrainedText(kChatMl, R"({"text": "abc"})"),
            "bc<|endoftext|>");  // nothing predicts the first token
}

TEST_F(EncodeTest, TrainsOnlyTheLastTurnForCompletionAndEverythingForAll) {
  using LossOn = EncodeOptions::LossOn;
  for (const char* chat_template : {kChatMl, kTaggedChatMl}) {
    EXPECT_EQ(TrainedText(chat_template, kTwoTurns, {.loss_on = LossOn::kCompletion}), "two<|im_end|>");
    const Example all = Encode(chat_template, kTwoTurns, {.loss_on = LossOn::kAll}).value();
    EXPECT_EQ(all.TrainedTokens(), static_cast<int64_t>(all.ids.size()) - 1);
  }
}

TEST_F(EncodeTest, LeavesOutMessagesOfWeightZero) {
  const char* line =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one", "weight": 0},
                                      {"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}]})";
  for (const char* chat_template : {kChatMl, kTaggedChatMl})
    EXPECT_EQ(TrainedText(chat_template, line), "two<|im_end|>");
}

TEST_F(EncodeTest, LeavesOutMessagesOfWeightZeroWhenEverythingElseIsTrained) {
  const char* line =
      R"({"messages": [{"role": "system", "content": "s", "weight": 0}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": "bad", "weight": 0},
                       {"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}]})";
  for (const char* chat_template : {kChatMl, kTaggedChatMl}) {
    EXPECT_EQ(TrainedText(chat_template, line, {.loss_on = EncodeOptions::LossOn::kAll}),
              "<|im_start|>user\nq<|im_end|>\n|<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n");
  }
  EXPECT_THAT(TrainedText(kForgetfulChatMl,
                          R"({"messages": [{"role": "assistant", "content": "x</think>one", "weight": 0},
                                           {"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}]})",
                          {.loss_on = EncodeOptions::LossOn::kAll}),
              HasSubstr("messages[0] has weight 0"));
}

TEST_F(EncodeTest, TakesTokensAsTheyAre) {
  const std::string row = R"({"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]})";
  using LossOn = EncodeOptions::LossOn;
  for (const LossOn loss_on : {LossOn::kAssistant, LossOn::kCompletion, LossOn::kAll}) {
    const Example example = Encode(kChatMl, row, {.loss_on = loss_on}).value();
    EXPECT_THAT(example.ids, ElementsAre(5, 6, 7, 8));
    EXPECT_THAT(example.trained, ElementsAre(0, 0, 1, 1));  // nothing predicts the first token
  }
  EXPECT_THAT(TrainedText(kChatMl, R"({"input_ids": [5, 6, 99999]})"),
              HasSubstr("`input_ids[2]` is 99999, for which the base model's tokenizer has no token"));
  EXPECT_THAT(TrainedText(kChatMl, R"({"input_ids": [5, 6], "labels": [5, -100]})"), HasSubstr("`labels` is -100"));
}

// What the tags are around is the template's author's mistake, and the mask would be it too.
TEST_F(EncodeTest, RefusesGenerationTagsThatAreNotAroundTheAnswer) {
  const std::string line =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]})";
  const std::string end = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  const std::string whole =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";
  EXPECT_THAT(TrainedText("{% generation %}" + whole + "{% endgeneration %}" + end, line),
              HasSubstr("what is not the words of one: \"<|im_start|>user\\nq"));
  // Inside a macro the place that the renderer notes is where the macro's text begins.
  const std::string macro =
      "{% macro turn(m) %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
      "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
      "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}";
  EXPECT_THAT(TrainedText(macro + end, line), HasSubstr("{% generation %} inside a macro"));
}

// Reasoning that the template puts in front, or words that it changes, are the assistant's: the turn shows it.
TEST_F(EncodeTest, TrainsWhatGenerationTagsHoldWithinTheAssistantsTurn) {
  const std::string thinking =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
      "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
      "{{ m.content | upper }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
      "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  EXPECT_EQ(TrainedText(thinking, kTwoTurns), "ONE<|im_end|>|TWO<|im_end|>");
  EXPECT_EQ(TrainedText(thinking, R"({"messages": [{"role": "user", "content": "q"},
                {"role": "assistant", "reasoning_content": "why", "content": "one"}]})"),
            "<think>why</think>ONE<|im_end|>");
}

TEST_F(EncodeTest, RefusesARowWithoutATrainedToken) {
  const char* line =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]})";
  EXPECT_THAT(TrainedText(kChatMl, line), HasSubstr("every assistant message has weight 0"));
  const char* last_untrained =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                       {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "weight": 0}]})";
  EXPECT_THAT(TrainedText(kChatMl, last_untrained, {.loss_on = EncodeOptions::LossOn::kCompletion}),
              HasSubstr("last assistant message has weight 0"));
}

// Qwen3 cuts earlier <think> parts: what precedes the last answer is not what preceded it when it
// was the last but one.
TEST_F(EncodeTest, RefusesATemplateThatRewritesEarlierTurnsUnlessOnlyTheLastIsTrained) {
  const char* line =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x</think>one"},
                                      {"role": "user", "content": "r"}, {"role": "assistant", "content": "y</think>two"}]})";
  EXPECT_THAT(TrainedText(kForgetfulChatMl, line), HasSubstr("assistant turn 1 differently"));
  EXPECT_EQ(TrainedText(kForgetfulChatMl, line, {.loss_on = EncodeOptions::LossOn::kCompletion}),
            "y</think>two<|im_end|>");
}

// "\n\n" is one token of the fixture: encoded as a whole, the prompt would lose its last token to
// the answer.
TEST_F(EncodeTest, KeepsThePromptsTokensWhenTheAnswerWouldMergeWithThem) {
  const char* line = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n!"}]})";
  for (const char* chat_template : {kChatMl, kTaggedChatMl}) {
    const ChatTemplate compiled = Compiled(chat_template);
    const RowEncoder encoder(tokenizer_, &compiled, {});
    const Row row = ParseRow(line, 1).value();
    const Example example = encoder.Encode(row).value();
    const Prompt prompt = encoder.EncodePrompt(row).value();
    EXPECT_EQ(std::vector<int32_t>(example.ids.begin(), example.ids.begin() + prompt.ids.size()), prompt.ids);
    EXPECT_EQ(Trained(tokenizer_, example), "\n!<|im_end|>");
  }
  const Example completion = Encode(kChatMl, R"({"prompt": "a\n", "completion": "\nb"})").value();
  EXPECT_EQ(Trained(tokenizer_, completion), "\nb<|endoftext|>");
}

TEST_F(EncodeTest, RefusesALongRowWithItsLengthAndTheRemedy) {
  const absl::Status status = Encode(kChatMl, kTwoTurns, {.max_length = 20}).status();
  EXPECT_TRUE(absl::IsOutOfRange(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokens, training.max_length is 20; raise max_length"));
}

// A cut through an answer keeps the part that is left; a cut in front of it leaves nothing to
// train.
TEST_F(EncodeTest, TruncatesAndKeepsTheMaskOfWhatIsLeft) {
  const auto cut_at = [&](int64_t max_length) {
    return Encode(kChatMl,
                  R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]})",
                  {.too_long = EncodeOptions::TooLong::kTruncate, .max_length = max_length})
        .value();
  };
  const int64_t full = cut_at(1000).full_length;
  EXPECT_EQ(Trained(tokenizer_, cut_at(full - 3)), "on");  // without "\n", <|im_end|>, "e"
  EXPECT_EQ(cut_at(5).TrainedTokens(), 0);
  EXPECT_EQ(cut_at(5).ids.size(), 5u);
  EXPECT_EQ(cut_at(5).full_length, full);
}

TEST_F(EncodeTest, KeepsTheWholeAnswerAndCutsWhatIsFarthestFromIt) {
  const std::string row =
      R"({"messages": [{"role": "user", "content": "a long question"}, {"role": "assistant", "content": "one"}]})";
  const Example whole = Encode(kChatMl, row, {}).value();
  const auto cut_at = [&](int64_t max_length) {
    return Encode(kChatMl, row, {.too_long = EncodeOptions::TooLong::kKeepAnswer, .max_length = max_length}).value();
  };
  const auto length = static_cast<int64_t>(whole.ids.size());
  for (int64_t max_length = whole.TrainedTokens() + 1; max_length < length; ++max_length) {
    const Example cut = cut_at(max_length);
    EXPECT_EQ(Trained(tokenizer_, cut), "one<|im_end|>") << max_length;
    EXPECT_LE(static_cast<int64_t>(cut.ids.size()), max_length);
    EXPECT_EQ(cut.full_length, length);
    // What is left is a piece of the row as it was.
    EXPECT_NE(std::search(whole.ids.begin(), whole.ids.end(), cut.ids.begin(), cut.ids.end()), whole.ids.end());
  }
  EXPECT_EQ(Trained(tokenizer_, cut_at(3)), "on");  // even the answer alone is too long: its start, behind one token
}

TEST_F(EncodeTest, ADroppedRowHasNoTrainedToken) {
  const Example dropped =
      Encode(kChatMl, kTwoTurns, {.too_long = EncodeOptions::TooLong::kDrop, .max_length = 5}).value();
  EXPECT_EQ(dropped.TrainedTokens(), 0);
}

TEST_F(EncodeTest, PreparesAPromptAndTheAnswerItShouldGet) {
  for (const char* chat_template : {kChatMl, kTaggedChatMl}) {
    const ChatTemplate compiled = Compiled(chat_template);
    const RowEncoder encoder(tokenizer_, &compiled, {});
    const Prompt prompt = encoder.EncodePrompt(ParseRow(kTwoTurns, 1).value()).value();
    EXPECT_EQ(prompt.text,
              "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
              "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n");
    EXPECT_EQ(tokenizer_.Decode(prompt.ids, false).value(), prompt.text);
    EXPECT_EQ(prompt.expected, "two");
    EXPECT_THAT(encoder.stop_ids(), Contains(*tokenizer_.TokenToId("<|im_end|>")));
    EXPECT_THAT(encoder.stop_ids(), Contains(*tokenizer_.eos_id()));
    const std::vector<int32_t> ids = encoder.EncodeMessages({{{"role", "user"}, {"content", "hi"}}}).value();
    EXPECT_EQ(tokenizer_.Decode(ids, false).value(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  }
}

// OpenAI's content may be a list of parts. This template says nothing that the answer could be cut out of.
TEST_F(EncodeTest, TheExpectedAnswerOfATemplateThatRewritesItIsTheRowsOwn) {
  const ChatTemplate compiled = Compiled("{{ messages | length }}");
  const RowEncoder encoder(tokenizer_, &compiled, {});
  const auto expected = [&](const std::string& answer) {
    return encoder
        .EncodePrompt(ParseRow(R"({"messages": [{"role": "user", "content": "q"}, )" + answer + "]}", 1).value())
        .value()
        .expected;
  };
  EXPECT_EQ(expected(R"({"role": "assistant", "content": "one"})"), "one");
  EXPECT_EQ(expected(R"({"role": "assistant", "content": "one", "tool_calls": null})"), "one");
  EXPECT_EQ(expected(R"({"role": "assistant", "content": [{"type": "text", "text": "one"}]})"),
            R"([{"type":"text","text":"one"}])");
}

TEST_F(EncodeTest, RefusesConversationsWithoutAChatTemplate) {
  const RowEncoder encoder(tokenizer_, nullptr, {});
  EXPECT_THAT(std::string(encoder.Encode(ParseRow(kTwoTurns, 1).value()).status().message()),
              HasSubstr("the base model has no chat template"));
  EXPECT_TRUE(encoder.Encode(ParseRow(R"({"text": "abc"})", 1).value()).ok());
}

TEST_F(EncodeTest, PassesOnWhyTheTemplateRefusesARow) {
  EXPECT_THAT(TrainedText("{{ raise_exception('roles must alternate') }}", kTwoTurns),
              HasSubstr("roles must alternate"));
}

// A tokenizer whose post-processor puts <s> in front of each text, as Llama's does.
class BosTest : public EncodeTest {
 protected:
  void SetUp() override {
    OrderedJson json;
    std::ifstream("tests/fixtures/tokenizer/tokenizer.json") >> json;
    const OrderedJson bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
    const OrderedJson text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    const OrderedJson pair = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
    json["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single", OrderedJson::array({bos, text})},
        {"pair", OrderedJson::array({bos, text, pair})},
        {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {*tokenizer_.TokenToId("<s>")}}, {"tokens", {"<s>"}}}}}}};
    std::ofstream(folder_.path() + "/tokenizer.json") << json;
    std::ofstream(folder_.path() + "/tokenizer_config.json") << R"({"bos_token": "<s>", "eos_token": "<|endoftext|>"})";
  }
  int64_t CountBos(const std::string& chat_template, const std::string& line) {
    const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
    EXPECT_EQ(tokenizer.Encode("a", /*with_special_tokens=*/true)->ids.front(), *tokenizer.bos_id());
    const ChatTemplate compiled = Compiled(chat_template);
    const Example example = RowEncoder(tokenizer, &compiled, {}).Encode(ParseRow(line, 1).value()).value();
    EXPECT_EQ(example.ids.front(), *tokenizer.bos_id());
    return std::count(example.ids.begin(), example.ids.end(), *tokenizer.bos_id());
  }
  const TempFolder folder_;
};

TEST_F(BosTest, PutsItInFrontOnce) {
  EXPECT_EQ(CountBos("{{ '<s>' }}" + std::string(kChatMl), kTwoTurns),
            1);  // the template writes it
  EXPECT_EQ(CountBos(kChatMl, R"({"text": "abc"})"), 1);
  EXPECT_EQ(CountBos(kChatMl, R"({"text": "<s>abc"})"), 1);  // the data writes it too
  EXPECT_EQ(CountBos(kChatMl, R"({"prompt": "a", "completion": "b"})"), 1);
  EXPECT_EQ(CountBos(kChatMl, R"({"prompt": "a\n", "completion": "\nb"})"), 1);
}

// Nothing is cut away between BOS and the first token, which is still predicted from it.
TEST_F(BosTest, TheFirstTokenOfATextThatIsCutAtItsEndIsTrained) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const Row row = ParseRow(R"({"text": "one two three four"})", 1).value();
  const Example whole = RowEncoder(tokenizer, nullptr, {}).Encode(row).value();
  ASSERT_GT(whole.ids.size(), 3u);
  const EncodeOptions keep_answer{.too_long = EncodeOptions::TooLong::kKeepAnswer, .max_length = 3};
  const Example cut = RowEncoder(tokenizer, nullptr, keep_answer).Encode(row).value();
  EXPECT_THAT(cut.ids, ElementsAre(whole.ids[0], whole.ids[1], whole.ids[2]));
  EXPECT_THAT(cut.trained, ElementsAre(0, 1, 1));
}

// As Llama 2's: what is encoded apart gets a space in front, which the row does not have.
TEST(MetaspaceTest, ACompletionThatWouldGetASpaceIsRefused) {
  const TempFolder folder;
  const OrderedJson space = {
      {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}};
  const OrderedJson vocabulary = {{"▁", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"c", 4}, {"</s>", 5}};
  const OrderedJson model = {{"type", "BPE"},
                             {"dropout", nullptr},
                             {"unk_token", nullptr},
                             {"continuing_subword_prefix", nullptr},
                             {"end_of_word_suffix", nullptr},
                             {"fuse_unk", false},
                             {"byte_fallback", false},
                             {"ignore_merges", false},
                             {"vocab", vocabulary},
                             {"merges", OrderedJson::array({"a b"})}};
  const OrderedJson json = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", OrderedJson::array()},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", space},
                            {"post_processor", nullptr},
                            {"decoder", space},
                            {"model", model}};
  std::ofstream(folder.path() + "/tokenizer.json") << json;
  std::ofstream(folder.path() + "/tokenizer_config.json") << R"({"eos_token": "</s>"})";
  const Tokenizer tokenizer = Tokenizer::Load(folder.path()).value();
  const RowEncoder encoder(tokenizer, nullptr, {});
  const auto encode = [&](const char* line) { return encoder.Encode(ParseRow(line, 1).value()); };
  EXPECT_THAT(std::string(encode(R"({"prompt": "a", "completion": "b"})").status().message()),
              HasSubstr("holds the end of the prompt as well"));
  EXPECT_THAT(encode(R"({"prompt": "a", "completion": " b"})")->ids, ElementsAre(0, 1, 0, 2, 5));
  EXPECT_THAT(encode(R"({"prompt": "a", "completion": "c"})")->ids, ElementsAre(0, 1, 4, 5));
}

// As tokenizers that split at white space and drop it.
TEST(WhitespaceTest, AnAnswerWhoseEndHasNoTokenTrainsNothingBehindIt) {
  const TempFolder folder;
  const OrderedJson vocabulary = {{"U:", 0}, {"A:", 1}, {"one", 2}, {"two", 3}, {"[UNK]", 4}};
  const OrderedJson json = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", OrderedJson::array()},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                            {"post_processor", nullptr},
                            {"decoder", nullptr},
                            {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "[UNK]"}}}};
  std::ofstream(folder.path() + "/tokenizer.json") << json;
  const Tokenizer tokenizer = Tokenizer::Load(folder.path()).value();
  const ChatTemplate tagged = Compiled(
      "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A: ' }}{% generation %}{{ m.content + '\\n' }}"
      "{% endgeneration %}{% else %}{{ 'U: ' + m.content + '\\n' }}{% endif %}{% endfor %}");
  const auto encode = [&](const char* answer) {
    const OrderedJson user = {{"role", "user"}, {"content", "one"}};
    const OrderedJson assistant = {{"role", "assistant"}, {"content", answer}};
    const OrderedJson row = {{"messages", {user, assistant, user, {{"role", "assistant"}, {"content", "two"}}}}};
    return RowEncoder(tokenizer, &tagged, {}).Encode(ParseRow(row.dump(), 1).value()).value();
  };
  EXPECT_THAT(encode("two").ids, ElementsAre(0, 2, 1, 3, 0, 2, 1, 3));
  EXPECT_THAT(encode("two").trained, ElementsAre(0, 0, 0, 1, 0, 0, 0, 1));
  EXPECT_THAT(encode("  two").trained, ElementsAre(0, 0, 0, 1, 0, 0, 0, 1));
}

TEST(MaskOfSpansTest, FollowsTransformersWhereSpansHaveNoToken) {
  const Encoding encoding{.ids = {1, 2, 3}, .offsets = {{0, 2}, {2, 4}, {6, 8}}};
  EXPECT_THAT(MaskOfSpans(encoding, {{2, 4}}), ElementsAre(0, 1, 0));
  EXPECT_THAT(MaskOfSpans(encoding, {{3, 8}}), ElementsAre(0, 1, 1));
  EXPECT_THAT(MaskOfSpans(encoding, {{2, 6}}), ElementsAre(0, 1, 1));  // no token at the end: to the end
  EXPECT_THAT(MaskOfSpans(encoding, {{4, 8}, {0, 2}}),
              ElementsAre(0, 0, 0));  // no token at the start: the rest is dropped
}

}  // namespace
}  // namespace luthier
