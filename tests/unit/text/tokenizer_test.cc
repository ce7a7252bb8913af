#include "lib/text/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/text/json.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kFixture[] = "tests/fixtures/tokenizer";

TEST(TokenizerTest, EncodesBytesMergesAndSpecialTokens) {
  const Tokenizer tokenizer = Tokenizer::Load(kFixture).value();
  const Encoding encoding = tokenizer.Encode("the<|im_end|>é", false).value();
  const int32_t the = *tokenizer.TokenToId("the"), end = *tokenizer.TokenToId("<|im_end|>");
  EXPECT_THAT(encoding.ids, ElementsAre(the, end, 0xC3, 0xA9));
  // The two bytes of é are one character, and both tokens stand for it.
  EXPECT_THAT(encoding.offsets, ElementsAre(TextSpan{0, 3}, TextSpan{3, 13}, TextSpan{13, 15}, TextSpan{13, 15}));
  EXPECT_TRUE(tokenizer.IsSpecial(end));
  EXPECT_FALSE(tokenizer.IsSpecial(the));
  EXPECT_EQ(tokenizer.IdToToken(the), "the");
  EXPECT_EQ(tokenizer.IdToToken(100000), std::nullopt);
  EXPECT_EQ(tokenizer.vocab_size(), *tokenizer.TokenToId("<s>") + 1);
}

TEST(TokenizerTest, DecodesWithAndWithoutSpecialTokens) {
  const Tokenizer tokenizer = Tokenizer::Load(kFixture).value();
  const std::vector<int32_t> ids = tokenizer.Encode("the answer é 😀<|im_end|>", false)->ids;
  EXPECT_EQ(tokenizer.Decode(ids, false).value(), "the answer é 😀<|im_end|>");
  EXPECT_EQ(tokenizer.Decode(ids, true).value(), "the answer é 😀");
  EXPECT_EQ(tokenizer.Decode({}, true).value(), "");
  EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.Decode(std::vector<int32_t>{-1}, false).status()));
}

TEST(TokenizerTest, ReadsWhichTokensEndAText) {
  const TempFolder folder;
  std::filesystem::copy(std::string(kFixture) + "/tokenizer.json", folder.path() + "/tokenizer.json");
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"bos_token": {"content": "<s>"}, "eos_token": "<|endoftext|>", "pad_token": null})";
  const int32_t im_end = *Tokenizer::Load(kFixture)->TokenToId("<|im_end|>");
  std::ofstream(folder.path() + "/generation_config.json") << R"({"eos_token_id": [)" << im_end << "]}";
  const Tokenizer tokenizer = Tokenizer::Load(folder.path()).value();
  EXPECT_EQ(tokenizer.special_tokens().bos, "<s>");
  EXPECT_EQ(tokenizer.bos_id(), tokenizer.TokenToId("<s>"));
  EXPECT_EQ(tokenizer.eos_id(), tokenizer.TokenToId("<|endoftext|>"));
  EXPECT_THAT(tokenizer.stop_ids(), ElementsAre(*tokenizer.eos_id(), im_end));
}

TEST(TokenizerTest, NamesTheFileThatItCannotRead) {
  const TempFolder folder;
  EXPECT_TRUE(absl::IsNotFound(Tokenizer::Load(folder.path()).status()));
  std::ofstream(folder.path() + "/tokenizer.json") << R"({"model": {"type": "BPE"})";
  const absl::Status status = Tokenizer::Load(folder.path()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json is no tokenizer"));
}

TEST(TokenizerTest, DeepNestingIsRefusedAndEndsNoProcess) {
  const TempFolder folder;
  std::filesystem::copy(std::string(kFixture) + "/tokenizer.json", folder.path() + "/tokenizer.json");
  std::ofstream(folder.path() + "/config.json")
      << R"({"eos_token_id": )" << std::string(300'000, '[') << std::string(300'000, ']') << "}";
  EXPECT_THAT(std::string(Tokenizer::Load(folder.path()).status().message()),
              HasSubstr("config.json is nested deeper than 64 levels"));
}

// Bug 28: how a text is cut before merging is the file's to say. Here digits stand alone, or in groups of three.
TEST(TokenizerTest, CutsTextsByTheRegularExpressionOfTheFile) {
  OrderedJson json;
  std::ifstream(std::string(kFixture) + "/tokenizer.json") >> json;
  const auto next = static_cast<int>(json["model"]["vocab"].size() + json["added_tokens"].size());
  json["model"]["vocab"]["12"] = next;
  json["model"]["vocab"]["123"] = next + 1;
  json["model"]["merges"].push_back({"1", "2"});
  json["model"]["merges"].push_back({"12", "3"});
  const OrderedJson bytes = json["pre_tokenizer"];
  const auto ids = [&](const std::string& regex) {
    json["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}}, bytes}}};
    const TempFolder folder;
    std::ofstream(folder.path() + "/tokenizer.json") << json;
    return Tokenizer::Load(folder.path()).value().Encode("x1234", false).value().ids;
  };
  EXPECT_THAT(ids(R"(\p{N})"), ElementsAre('x', '1', '2', '3', '4'));
  EXPECT_THAT(ids(R"(\p{N}{1,3})"), ElementsAre('x', next + 1, '4'));
}

// transformers counts characters, and a post-processor that trims offsets takes one off: é has one, and two bytes.
TEST(TokenizerTest, TrimsOffsetsByCharacters) {
  OrderedJson json;
  std::ifstream(std::string(kFixture) + "/tokenizer.json") >> json;
  json["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  json["post_processor"] = json["pre_tokenizer"];
  const TempFolder folder;
  std::ofstream(folder.path() + "/tokenizer.json") << json;
  const Encoding encoding = Tokenizer::Load(folder.path()).value().Encode("<|im_end|>é", false).value();
  EXPECT_THAT(encoding.offsets, ElementsAre(TextSpan{0, 10}, TextSpan{12, 12}, TextSpan{10, 12}, TextSpan{10, 12}));
}

// What tokenizers of each family become is compared in tests/fixtures/text; this is what has no counterpart there.
TEST(TokenizerTest, RefusesAClassThatTheModelOfTheFileDoesNotFit) {
  OrderedJson json;
  std::ifstream(std::string(kFixture) + "/tokenizer.json") >> json;
  json["model"] = OrderedJson::parse(R"({"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["b", -2.0]]})");
  const TempFolder folder;
  std::ofstream(folder.path() + "/tokenizer.json") << json;
  const auto load_as = [&](const std::string& name) {
    std::ofstream(folder.path() + "/tokenizer_config.json") << R"({"tokenizer_class": ")" << name << "\"}";
    return Tokenizer::Load(folder.path()).status();
  };
  EXPECT_THAT(std::string(load_as("GemmaTokenizer").message()),
              AllOf(HasSubstr("tokenizer.json has another model than BPE"), HasSubstr("`tokenizer_class`"),
                    HasSubstr("PreTrainedTokenizerFast")));
  EXPECT_EQ(load_as("PreTrainedTokenizerFast"), absl::OkStatus());
}

TEST(TokenizerTest, ATokenThatOnlyTheConfigurationHasIsBehindTheOthers) {
  const TempFolder folder;
  std::filesystem::copy(std::string(kFixture) + "/tokenizer.json", folder.path() + "/tokenizer.json");
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"pad_token": "[PAD]", "additional_special_tokens": ["<|tool|>"]})";
  const Tokenizer tokenizer = Tokenizer::Load(folder.path()).value();
  const int32_t last = *tokenizer.TokenToId("<s>");
  EXPECT_THAT(tokenizer.Encode("the[PAD]<|tool|>", false)->ids,
              ElementsAre(*tokenizer.TokenToId("the"), last + 1, last + 2));
  EXPECT_TRUE(tokenizer.IsSpecial(last + 1));
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = Tokenizer::Load(kFixture).value();
  EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.Encode("a\xFFz", false).status()));
  EXPECT_EQ(tokenizer.Encode(std::string_view("a\0b", 3), false)->ids.size(), 3u);
}

TEST(TokenizerTest, IsUsedByManyThreadsAtOnce) {
  const Tokenizer tokenizer = Tokenizer::Load(kFixture).value();
  const std::vector<int32_t> expected = tokenizer.Encode("the answer", false)->ids;
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += tokenizer.Encode("the answer", false)->ids != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

}  // namespace
}  // namespace luthier
