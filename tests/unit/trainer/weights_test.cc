#include "worker/trainer/models/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "lib/checkpoint/model_tensors.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

ModelConfig Config(int64_t vocab, int64_t hidden, bool tied) {
  return *ParseModelConfig({{"model_type", "llama"},
                            {"vocab_size", vocab},
                            {"hidden_size", hidden},
                            {"intermediate_size", 16},
                            {"num_hidden_layers", 1},
                            {"num_attention_heads", 2},
                            {"tie_word_embeddings", tied}});
}

// Writes `weights` as `type`; what `extra` holds replaces or joins them.
void Write(const std::string& folder, const NamedTensors& weights, at::ScalarType type,
           const NamedTensors& extra = {}) {
  NamedTensors stored;
  for (const auto& [name, tensor] : weights) stored[name] = tensor.to(type).contiguous();
  for (const auto& [name, tensor] : extra) stored[name] = tensor.contiguous();
  std::vector<TensorToWrite> views;
  for (const auto& [name, tensor] : stored) views.push_back(ToWrite(name, tensor));
  const absl::Status status = WriteSafetensors(folder + "/model.safetensors", views, {});
  ASSERT_TRUE(status.ok()) << status;
}

// A line of /proc/self/status in bytes.
int64_t ProcessBytes(const std::string& field) {
  std::ifstream stream("/proc/self/status");
  std::string line;
  while (std::getline(stream, line)) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return -1;
}

TEST(WeightsTest, EveryStoredFormatIsReadExactly) {
  const ModelConfig config = Config(20, 8, true);
  const NamedTensors weights = RandomWeights(config, 1);
  const TempFolder folder;
  for (const at::ScalarType stored : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    Write(folder.path(), weights, stored);
    for (const WeightUse use : {WeightUse::kFrozen, WeightUse::kTrained}) {
      const auto read = LoadWeights(folder.path(), config, at::kFloat, use);
      ASSERT_TRUE(read.ok()) << read.status();
      for (const auto& [name, tensor] : weights)
        EXPECT_TRUE(at::equal(read->at(name), tensor.to(stored).to(at::kFloat))) << name;
    }
  }
}

// As transformers holds them, and some files do: all experts of a layer in two tensors.
TEST(WeightsTest, ExpertsMayLieInTensorsOfAll) {
  const std::string base = "tests/fixtures/models/qwen3_moe/base";
  const ModelConfig config = *ReadModelConfig(base);
  const NamedTensors weights = *LoadWeights(base, config, at::kFloat, WeightUse::kFrozen);
  NamedTensors fused;
  std::map<std::string, std::vector<Tensor>> of_all;
  for (const auto& [name, tensor] : weights) {
    if (name.find(".mlp.experts.") == std::string::npos) fused[name] = tensor;
  }
  const std::string experts = "model.layers.0.mlp.experts.";
  for (int64_t expert = 0; expert < config.experts->count; ++expert) {
    const std::string its = experts + std::to_string(expert);
    of_all["gate_up_proj"].push_back(
        at::cat({weights.at(its + ".gate_proj.weight"), weights.at(its + ".up_proj.weight")}));
    of_all["down_proj"].push_back(weights.at(its + ".down_proj.weight"));
  }
  for (const auto& [name, tensors] : of_all) fused[experts + name] = at::stack(tensors);
  const TempFolder folder;
  Write(folder.path(), fused, at::kFloat);
  const auto read = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), weights.size());
  for (const auto& [name, tensor] : weights) EXPECT_TRUE(at::equal(read->at(name), tensor)) << name;
  fused[experts + "down_proj"] = fused[experts + "down_proj"].slice(0, 1);
  Write(folder.path(), fused, at::kFloat);
  EXPECT_THAT(std::string(LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen).status().message()),
              HasSubstr("missing: model.layers.0.mlp.experts.3.down_proj.weight"));
}

// 64 MB of weights: frozen ones of the file's own format live in the page cache, which all trainers of a node share.
TEST(WeightsTest, FrozenWeightsTakeNoMemoryOfTheirOwn) {
  constexpr int64_t kMegabytes = int64_t{1} << 20;
  const ModelConfig config = Config(int64_t{1} << 16, 256, true);
  const TempFolder folder;
  Write(folder.path(), RandomWeights(config, 1), at::kFloat);
  const int64_t before = ProcessBytes("RssAnon");
  const auto weights = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_NE(weights->at("model.embed_tokens.weight").sum().item<double>(), 0);  // every page is touched
  EXPECT_LT(ProcessBytes("RssAnon") - before, 8 * kMegabytes);
}

TEST(WeightsTest, ConvertedWeightsAreNotHeldTwice) {
  constexpr int64_t kMegabytes = int64_t{1} << 20;
  const ModelConfig config = Config(int64_t{1} << 16, 256, true);
  const TempFolder folder;
  Write(folder.path(), RandomWeights(config, 1), at::kBFloat16);
  const int64_t before = ProcessBytes("RssFile");
  const auto weights = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_LT(ProcessBytes("RssFile") - before, 8 * kMegabytes);
}

TEST(WeightsTest, TrainedWeightsMayBeWrittenToAndLeaveTheFileAlone) {
  const ModelConfig config = Config(20, 8, true);
  const TempFolder folder;
  Write(folder.path(), RandomWeights(config, 1), at::kFloat);
  for (int round = 0; round < 2; ++round) {
    const auto weights = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kTrained);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_TRUE(at::equal(weights->at("model.norm.weight"), at::ones({8})));
    weights->at("model.norm.weight").fill_(3);
  }
}

TEST(WeightsTest, ATiedMatrixIsReadUnderEitherName) {
  const ModelConfig config = Config(20, 8, true);
  NamedTensors weights = RandomWeights(config, 1);
  const Tensor embedding = weights.at("model.embed_tokens.weight");
  const TempFolder folder;
  Write(folder.path(), weights, at::kFloat, {{"lm_head.weight", embedding}});
  EXPECT_TRUE(LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen).ok());
  weights.erase("model.embed_tokens.weight");
  Write(folder.path(), weights, at::kFloat, {{"lm_head.weight", embedding}});
  const auto read = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(at::equal(read->at("model.embed_tokens.weight"), embedding));
}

// Bug 9: a head that was trained apart from its embedding must not be dropped silently.
TEST(WeightsTest, ATiedHeadWithOtherNumbersIsRefused) {
  const ModelConfig config = Config(20, 8, true);
  const TempFolder folder;
  Write(folder.path(), RandomWeights(config, 1), at::kFloat, {{"lm_head.weight", at::randn({20, 8})}});
  const auto read = LoadWeights(folder.path(), config, at::kFloat, WeightUse::kFrozen);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("tie_word_embeddings"));
}

}  // namespace
}  // namespace luthier
