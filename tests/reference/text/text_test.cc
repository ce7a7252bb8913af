// Our tokenizer and chat templates against what transformers wrote into shared/reference/text. The
// folder belongs to the developers and is not in the repository: without it the program ends
// with 77, which ctest reports as skipped.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/dataset/encode.h"
#include "lib/text/chat_template.h"
#include "lib/text/json_file.h"
#include "lib/text/tokenizer.h"

namespace luthier {
namespace {

constexpr char kRoot[] = "../shared/reference/text";

std::vector<OrderedJson> ReadLines(const std::string& path) {
  std::vector<OrderedJson> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(OrderedJson::parse(line));
  return lines;
}

OrderedJson ReadArray(const std::string& path) { return OrderedJson::parse(ReadTextFile(path).value()); }

// Our spans count bytes, those of the reference code points.
class CodePoints {
 public:
  explicit CodePoints(const std::string& text) {
    int64_t count = -1;
    for (const char c : text) {
      count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
      index_.push_back(count);
    }
    index_.push_back(count + 1);
  }
  OrderedJson operator()(const std::vector<TextSpan>& spans) const {
    OrderedJson converted = OrderedJson::array();
    for (const TextSpan span : spans) converted.push_back({index_.at(span.begin), index_.at(span.end)});
    return converted;
  }

 private:
  std::vector<int64_t> index_;
};

class ReferenceTextTest : public ::testing::Test {
 protected:
  const std::string root_ = kRoot;
};

TEST_F(ReferenceTextTest, EncodesAndDecodesAsTransformersDoes) {
  std::map<std::string, std::string> texts;
  for (const OrderedJson& line : ReadLines(root_ + "/strings.jsonl")) texts[line["id"]] = line["text"];
  int compared = 0;
  for (const OrderedJson& entry : ReadArray(root_ + "/tokenizers/index.json")) {
    const std::string name = entry["name"];
    const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Load(root_ + "/tokenizers/" + name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const OrderedJson& expected : ReadLines(root_ + "/expected/encode/" + name + ".jsonl")) {
      SCOPED_TRACE(name + " / " + expected["string"].get<std::string>());
      const std::string& text = texts.at(expected["string"]);
      const Encoding encoding = tokenizer->Encode(text, false).value();
      const Encoding with_special = tokenizer->Encode(text, true).value();
      EXPECT_EQ(OrderedJson(encoding.ids), expected["ids"]);
      EXPECT_EQ(CodePoints(text)(encoding.offsets), expected["offsets"]);
      EXPECT_EQ(OrderedJson(with_special.ids), expected["ids_with_special"]);
      EXPECT_EQ(tokenizer->Decode(encoding.ids, false).value(), expected["decoded"].get<std::string>());
      EXPECT_EQ(tokenizer->Decode(with_special.ids, true).value(), expected["decoded_skip_special"].get<std::string>());
      ++compared;
    }
  }
  std::cout << compared << " encodings compared\n";
  EXPECT_EQ(compared, 8 * 63);
}

// True if `rendered` is what the reference says: text and spans, the template's own error message,
// or any other error.
bool Agrees(const absl::StatusOr<RenderedChat>& rendered, const OrderedJson& expected) {
  if (expected.contains("error")) {
    if (rendered.ok()) return false;
    const OrderedJson& error = expected["error"];
    return !error["raised_by_template"].get<bool>() ||
           rendered.status().message() == error["message"].get<std::string>();
  }
  if (!rendered.ok() || rendered->text != expected["text"].get<std::string>()) return false;
  return !expected.contains("generation_spans") ||
         CodePoints(rendered->text)(rendered->generation) == expected["generation_spans"];
}

TEST_F(ReferenceTextTest, RendersEveryTemplateAsTransformersDoes) {
  std::map<std::string, std::string> conversations;
  for (const OrderedJson& line : ReadLines(root_ + "/conversations.jsonl")) conversations[line["id"]] = line.dump();
  std::map<std::string, ChatTemplate> templates;
  for (const OrderedJson& entry : ReadArray(root_ + "/templates/index.json")) {
    const std::string source = ReadTextFile(root_ + "/" + entry["file"].get<std::string>()).value();
    absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(source, entry["special_tokens"]);
    ASSERT_TRUE(compiled.ok()) << entry["id"] << ": " << compiled.status();
    EXPECT_EQ(compiled->has_generation_tag(), entry["has_generation"].get<bool>()) << entry["id"];
    templates.emplace(entry["id"], *std::move(compiled));
  }
  int compared = 0, agreed = 0;
  for (const OrderedJson& expected : ReadLines(root_ + "/expected/render.jsonl")) {
    const absl::StatusOr<RenderedChat> rendered =
        templates.at(expected["template"]).RenderRequest(conversations.at(expected["conversation"]));
    const bool agrees = Agrees(rendered, expected);
    EXPECT_TRUE(agrees) << expected.dump(-1, ' ', false) << "\nours: " << (rendered.ok() ? rendered->text : "")
                        << rendered.status();
    ++compared;
    agreed += agrees;
  }
  std::cout << agreed << " of " << compared << " renderings agree\n";
  EXPECT_EQ(compared, 89 * 31);
}

TEST_F(ReferenceTextTest, MasksTheTokensThatTransformersMasks) {
  std::map<std::string, std::string> conversations;
  for (const OrderedJson& line : ReadLines(root_ + "/conversations.jsonl")) conversations[line["id"]] = line.dump();
  std::map<std::string, ChatTemplate> templates;
  for (const OrderedJson& entry : ReadArray(root_ + "/templates/index.json")) {
    const std::string source = ReadTextFile(root_ + "/" + entry["file"].get<std::string>()).value();
    templates.emplace(entry["id"], ChatTemplate::Compile(source, entry["special_tokens"]).value());
  }
  std::map<std::string, Tokenizer> tokenizers;
  for (const OrderedJson& entry : ReadArray(root_ + "/tokenizers/index.json")) {
    const std::string name = entry["name"];
    tokenizers.emplace(name, Tokenizer::Load(root_ + "/tokenizers/" + name).value());
  }
  int compared = 0;
  for (const OrderedJson& expected : ReadLines(root_ + "/expected/masks.jsonl")) {
    SCOPED_TRACE(expected["tokenizer"].dump() + expected["template"].dump() + expected["conversation"].dump());
    const RenderedChat rendered =
        templates.at(expected["template"]).RenderRequest(conversations.at(expected["conversation"])).value();
    const Encoding encoding = tokenizers.at(expected["tokenizer"]).Encode(rendered.text, false).value();
    std::vector<uint8_t> mask(encoding.ids.size(), 0);
    for (const OrderedJson& run : expected["mask_runs"]) {
      std::fill(mask.begin() + run[0].get<int>(), mask.begin() + run[1].get<int>(), uint8_t{1});
    }
    EXPECT_EQ(OrderedJson(encoding.ids), expected["input_ids"]);
    EXPECT_EQ(MaskOfSpans(encoding, rendered.generation), mask);
    ++compared;
  }
  std::cout << compared << " masks compared\n";
  EXPECT_EQ(compared, 2040);
}

// Small templates, each for one behaviour of Jinja2 on Python. minijinja differs in some that no
// collected template needs.
TEST_F(ReferenceTextTest, AgreesOnMostProbesOfJinja) {
  constexpr int kKnownToAgree = 151;  // fewer means that something broke
  const OrderedJson probes = ReadArray(root_ + "/probes.json");
  std::map<std::string, std::string> sources;
  for (const OrderedJson& probe : probes["probes"]) sources[probe["id"]] = probe["template"];
  const std::string request = OrderedJson({{"messages", OrderedJson::array()}, {"kwargs", probes["vars"]}}).dump();
  int compared = 0, agreed = 0;
  std::string different;
  for (const OrderedJson& expected : ReadLines(root_ + "/expected/probes.jsonl")) {
    const absl::StatusOr<ChatTemplate> compiled =
        ChatTemplate::Compile(sources.at(expected["probe"]), OrderedJson::object());
    const absl::StatusOr<RenderedChat> rendered =
        compiled.ok() ? compiled->RenderRequest(request) : absl::StatusOr<RenderedChat>(compiled.status());
    const bool agrees = Agrees(rendered, expected);
    if (!agrees) different.append(" ").append(expected["probe"].get<std::string>());
    ++compared;
    agreed += agrees;
  }
  std::cout << agreed << " of " << compared << " probes agree; different:" << different << "\n";
  EXPECT_EQ(compared, 190);
  EXPECT_GE(agreed, kKnownToAgree);
}

}  // namespace
}  // namespace luthier

// GoogleTest's own main would end with 0 where nothing was compared, and ctest call that passed.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (!std::filesystem::exists(luthier::kRoot)) {
    std::cout << luthier::kRoot << " is not there: nothing was compared\n";
    return 77;
  }
  return RUN_ALL_TESTS();
}
