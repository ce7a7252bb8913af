#include "lib/checkpoint/model_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/adapter_names.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/checkpoint/safetensors.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class ModelFactsTest : public ::testing::Test {
 protected:
  void WriteConfig(const json& changes = json::object()) {
    json config = {{"model_type", "llama"},     {"architectures", {"LlamaForCausalLM"}},
                   {"vocab_size", 10},          {"hidden_size", 8},
                   {"intermediate_size", 16},   {"num_hidden_layers", 2},
                   {"num_attention_heads", 2},  {"num_key_value_heads", 1},
                   {"torch_dtype", "bfloat16"}, {"tie_word_embeddings", true}};
    config.update(changes);
    std::ofstream(folder_.path() + "/config.json") << config;
  }

  // Zeros for every tensor that the config asks for, with changes by name; an empty shape removes a tensor.
  void WriteWeights(const std::map<std::string, std::vector<int64_t>>& changes = {}) {
    auto shapes = CheckpointTensors(*ReadModelConfig(folder_.path()));
    for (const auto& [name, shape] : changes) shapes[name] = shape;
    static const std::vector<std::byte> zeros(4096);
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, shape] : shapes) {
      if (shape.empty()) continue;
      tensors.push_back({name, Dtype::kBf16, shape, {zeros.data(), 2 * static_cast<size_t>(NumElements(shape))}});
    }
    ASSERT_TRUE(WriteSafetensors(folder_.path() + "/model.safetensors", tensors, {{"format", "pt"}}).ok());
  }

  absl::StatusOr<ModelFacts> Read() { return ReadModelFacts(folder_.path()); }

  TempFolder folder_;
};

TEST_F(ModelFactsTest, CountsTiedParametersOnce) {
  WriteConfig();
  WriteWeights();
  const auto facts = Read();
  ASSERT_TRUE(facts.ok()) << facts.status();
  // Embedding 80, final norm 8; a layer: norms 16, q 64, k and v 32 each, o 64, MLP 3 · 128.
  EXPECT_EQ(facts->parameters, 80 + 8 + 2 * (16 + 64 + 32 + 32 + 64 + 384));
  EXPECT_EQ(facts->weight_bytes, 2 * facts->parameters);
  EXPECT_EQ(facts->dtype, "BF16");
  EXPECT_FALSE(facts->has_tokenizer);
  EXPECT_FALSE(facts->has_chat_template);
}

TEST_F(ModelFactsTest, AnUntiedHeadIsCountedAndNeeded) {
  WriteConfig({{"tie_word_embeddings", false}});
  WriteWeights();
  ASSERT_TRUE(Read().ok());
  WriteWeights({{"lm_head.weight", {}}});
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("missing: lm_head.weight [10, 8]"));
}

TEST_F(ModelFactsTest, FindsTokenizerAndTemplate) {
  WriteConfig();
  WriteWeights();
  std::ofstream(folder_.path() + "/tokenizer.json") << "{}";
  std::ofstream(folder_.path() + "/tokenizer_config.json") << R"({"chat_template": "{{ messages }}"})";
  EXPECT_TRUE(Read()->has_tokenizer);
  EXPECT_TRUE(Read()->has_chat_template);
}

TEST_F(ModelFactsTest, ReportsEveryTensorFaultTogether) {
  WriteConfig();
  WriteWeights({{"model.norm.weight", {}},
                {"model.layers.1.mlp.up_proj.weight", {16, 9}},
                {"model.layers.0.self_attn.q_proj.bias", {8}}});
  const std::string message(Read().status().message());
  EXPECT_THAT(message, HasSubstr("missing: model.norm.weight [8]"));
  EXPECT_THAT(message,
              HasSubstr("wrong shape: model.layers.1.mlp.up_proj.weight is [16, 9], config.json says [16, 8]"));
  EXPECT_THAT(message, HasSubstr("unexpected: model.layers.0.self_attn.q_proj.bias"));
}

TEST_F(ModelFactsTest, AFolderWithoutWeightsHasFactsForRandomInit) {
  WriteConfig();
  EXPECT_EQ(Read().status().code(), absl::StatusCode::kNotFound);
  const auto facts = ReadModelFactsWithoutWeights(folder_.path());
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->parameters, 1272);
  EXPECT_EQ(facts->weight_bytes, 0);
}

TEST_F(ModelFactsTest, AreShownWithTheConfigAsItIsStored) {
  WriteConfig();
  WriteWeights();
  const auto facts = Read();
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(ToJson(*facts), json({{"config", *ReadConfigJson(folder_.path())},
                                  {"parameters", 1272},
                                  {"weight_bytes", 2 * 1272},
                                  {"dtype", "BF16"},
                                  {"has_tokenizer", false},
                                  {"has_chat_template", false}}));
}

TEST_F(ModelFactsTest, ShardsAreOneFolder) {
  WriteConfig();
  const std::vector<std::byte> zeros(64);
  const auto write = [&](const std::string& file, const std::string& name) {
    ASSERT_TRUE(WriteSafetensors(folder_.path() + "/" + file, {{name, Dtype::kF32, {2}, {zeros.data(), 8}}}, {}).ok());
  };
  write("model-00001-of-00002.safetensors", "a");
  write("model-00002-of-00002.safetensors", "b");
  const auto index = [&](const json& weight_map) {
    std::ofstream(folder_.path() + "/model.safetensors.index.json") << json{{"weight_map", weight_map}};
    return WeightFolder::Open(folder_.path());
  };
  const auto weights = index({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->tensors().size(), 2u);
  EXPECT_THAT(std::string(index({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00001-of-00002.safetensors"}})
                              .status()
                              .message()),
              HasSubstr("model.safetensors.index.json: is stale: model-00001-of-00002.safetensors lacks tensor 'b'"));
  EXPECT_THAT(std::string(index({{"b", "model-00001-of-00002.safetensors"}}).status().message()),
              HasSubstr("is stale: model-00001-of-00002.safetensors holds tensor 'a'"));
  EXPECT_THAT(std::string(index({{"a", "model-00003-of-00003.safetensors"}}).status().message()),
              HasSubstr("is stale: it names model-00003-of-00003.safetensors, which is not there"));
  // As transformers, which looks for the whole file first.
  write("model.safetensors", "c");
  const auto whole = WeightFolder::Open(folder_.path());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->tensors().size(), 1u);
  EXPECT_TRUE(whole->tensors().contains("c"));
}

// As a base model is saved without its head.
TEST_F(ModelFactsTest, NamesMayLackThePrefixOfTheModel) {
  WriteConfig();
  std::map<std::string, std::vector<int64_t>> changes;
  for (const auto& [name, shape] : CheckpointTensors(*ReadModelConfig(folder_.path()))) {
    changes[name] = {};
    changes[name.substr(std::string("model.").size())] = shape;
  }
  WriteWeights(changes);
  const auto facts = Read();
  ASSERT_TRUE(facts.ok()) << facts.status();
  changes["model.norm.weight"] = {8};
  WriteWeights(changes);
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("unexpected: norm.weight"));
  changes["norm.weight"] = {};
  WriteWeights(changes);
  EXPECT_TRUE(Read().ok());
  WriteConfig({{"tie_word_embeddings", false}});
  changes["lm_head.weight"] = {};
  WriteWeights(changes);
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("missing: lm_head.weight"));
}

TEST_F(ModelFactsTest, SizesThatOverflowOrFillMemoryAreRefused) {
  WriteConfig({{"num_hidden_layers", 1 << 29}});
  EXPECT_THAT(std::string(ReadModelFactsWithoutWeights(folder_.path()).status().message()),
              HasSubstr("num_hidden_layers"));
  WriteConfig({{"num_attention_heads", 1 << 29}, {"head_dim", 1 << 20}, {"num_key_value_heads", 1}});
  EXPECT_THAT(std::string(ReadModelFactsWithoutWeights(folder_.path()).status().message()), HasSubstr("head_dim"));
  WriteConfig({{"vocab_size", 1 << 30}, {"hidden_size", 1 << 30}});
  EXPECT_THAT(std::string(ReadModelFactsWithoutWeights(folder_.path()).status().message()), HasSubstr("parameters"));
}

// Printing the value of a refused field calls itself once a level.
TEST_F(ModelFactsTest, DeepNestingIsRefusedAndEndsNoProcess) {
  const std::string deep = std::string(300'000, '[') + std::string(300'000, ']');
  std::ofstream(folder_.path() + "/config.json") << R"({"model_type": "llama", "quantization_config": )" << deep << "}";
  EXPECT_THAT(std::string(ReadModelFactsWithoutWeights(folder_.path()).status().message()),
              HasSubstr("config.json: is nested deeper than 64 levels"));
  std::ofstream(folder_.path() + "/adapter_config.json") << R"({"peft_type": "LORA", "bias": )" << deep << "}";
  EXPECT_THAT(std::string(ReadAdapterConfig(folder_.path()).status().message()),
              HasSubstr("adapter_config.json: is nested deeper than 64 levels"));
}

TEST_F(ModelFactsTest, AnotherHeadIsRefusedByName) {
  WriteConfig({{"architectures", {"LlamaForSequenceClassification"}}});
  EXPECT_THAT(std::string(ReadModelFactsWithoutWeights(folder_.path()).status().message()),
              HasSubstr("LlamaForSequenceClassification"));
}

TEST_F(ModelFactsTest, APickleUnderASafetensorsNameIsCalledAPickle) {
  WriteConfig();
  std::ofstream(folder_.path() + "/model.safetensors", std::ios::binary)
      << std::string("PK\x03\x04", 4) + std::string(100, 'x');
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("pickle"));
}

// Every cut and every flipped byte of a header either reads as a file or is refused; under ASan this finds overruns.
TEST_F(ModelFactsTest, MutatedHeadersNeverCrash) {
  WriteConfig();
  WriteWeights();
  std::ifstream stream(folder_.path() + "/model.safetensors", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const std::string path = folder_.path() + "/mutated.safetensors";
  const auto open = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
    return SafetensorsFile::Open(path);
  };
  for (size_t length = 0; length < whole.size(); length += 7)
    EXPECT_FALSE(open(whole.substr(0, length)).ok()) << length;
  for (size_t position = 0; position < 600; ++position) {
    for (const char flip : {'\x01', '\x20', '\x80'}) {
      std::string mutated = whole;
      mutated[position] = static_cast<char>(mutated[position] ^ flip);
      const auto file = open(mutated);
      if (!file.ok()) continue;
      size_t bytes = 0;
      for (const auto& [name, view] : file->tensors()) bytes += view.bytes.size();
      EXPECT_LE(bytes, whole.size());
    }
  }
}

// A tied model's one matrix may be stored under the head's name, as transformers reads it.
TEST_F(ModelFactsTest, ATiedHeadMayStandForTheEmbedding) {
  WriteConfig();
  WriteWeights({{"model.embed_tokens.weight", {}}, {"lm_head.weight", {10, 8}}});
  EXPECT_TRUE(Read().ok()) << Read().status();
  WriteWeights({{"model.embed_tokens.weight", {}}});
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("missing: model.embed_tokens.weight"));
}

// Config, tensor table and adapter of every family against what transformers and PEFT counted.
void ExpectReadAsTransformersReadsThem(const std::filesystem::path& root) {
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    const std::filesystem::path& folder = entry.path();
    if (!std::filesystem::exists(folder / "golden.json")) continue;
    std::ifstream golden_stream(folder / "golden.json");
    const json golden = json::parse(golden_stream);
    const auto facts = ReadModelFacts((folder / "base").string());
    ASSERT_TRUE(facts.ok()) << folder << ": " << facts.status();
    EXPECT_EQ(facts->parameters, golden["base"]["num_parameters"].get<int64_t>()) << folder;
    const auto adapter = ReadAdapterConfig((folder / "adapter_init").string());
    ASSERT_TRUE(adapter.ok()) << folder << ": " << adapter.status();
    std::map<std::string, double> scales;
    for (const LinearLayer& linear : TargetedLayers(*adapter, facts->config))
      scales[StoredUnder(*adapter, linear)] = adapter->ScaleOf(linear.name());
    for (const auto& [module, scale] : golden["lora"]["scaling"].items()) {
      ASSERT_TRUE(scales.contains(module)) << folder << " " << module;
      EXPECT_NEAR(scales.at(module), scale.get<double>(), 1e-6) << folder << " " << module;
    }
    EXPECT_EQ(golden["lora"]["scaling"].size(), scales.size()) << folder;
  }
}

TEST(ReferenceModelsTest, TheFixturesAreReadAsTransformersReadsThem) {
  ExpectReadAsTransformersReadsThem("tests/fixtures/models");
  ExpectReadAsTransformersReadsThem("tests/fixtures/adapters");
}

// Absent outside the development machines.
TEST(ReferenceModelsTest, TheReferenceCasesAreReadAsTransformersReadsThem) {
  const std::filesystem::path root = "../shared/reference/models";
  if (!std::filesystem::exists(root)) GTEST_SKIP() << root << " is not here: the reference cases were not compared";
  ExpectReadAsTransformersReadsThem(root);
}

}  // namespace
}  // namespace luthier
