// Rotary tables against the frequencies that transformers stored with the fixtures.
#include "worker/trainer/models/common/rotary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>

#include "lib/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

// The table of positions 0 to length - 1 of a document of `length` tokens is that of the stored frequencies.
void ExpectFrequencies(const std::string& name, size_t rope, int64_t length, const std::string& stored) {
  const std::string folder = "tests/fixtures/models/" + name;
  const auto golden = SafetensorsFile::Open(folder + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  std::ifstream stream(folder + "/golden.json");
  const nlohmann::json factors = nlohmann::json::parse(stream)["rope"];
  const double factor = factors.value("attention_scaling", 1.0);
  const Tensor frequencies_P = ToTensor(golden->tensors().at("debug." + stored), at::kFloat);
  const ModelConfig config = *ReadModelConfig(folder + "/base");
  const Tensor positions_T = at::arange(length, at::kLong);
  const ops::RotaryTable table =
      RotaryEmbedding(config.ropes[rope], at::kCPU)(positions_T, at::full({length}, length, at::kLong));
  const Tensor angles_TP = at::outer(positions_T.to(at::kFloat), frequencies_P);
  ASSERT_EQ(table.cos_TP.sizes(), angles_TP.sizes());
  EXPECT_LT((table.cos_TP - angles_TP.cos() * factor).abs().max().item<double>(), 1e-6);
  EXPECT_LT((table.sin_TP - angles_TP.sin() * factor).abs().max().item<double>(), 1e-6);
}

TEST(RotaryTest, FrequenciesAreThoseOfTransformers) { ExpectFrequencies("qwen3", 0, 50, "inv_freq"); }
TEST(RotaryTest, Llama3ScalesLowFrequencies) { ExpectFrequencies("llama", 0, 50, "inv_freq"); }
TEST(RotaryTest, LinearOnTheFullLayersOnly) {
  ExpectFrequencies("gemma3_text", 0, 50, "full_attention_inv_freq");
  ExpectFrequencies("gemma3_text", 1, 50, "sliding_attention_inv_freq");
}
TEST(RotaryTest, LongropeChoosesByTheLengthOfTheDocument) {
  ExpectFrequencies("phi3", 0, 5, "inv_freq");
  ExpectFrequencies("phi3", 0, 4, "inv_freq_short");
}

RopeConfig Rope(RopeConfig::Type type) {
  RopeConfig rope;
  rope.type = type;
  rope.rotary_dim = 16;
  rope.factor = 2;
  rope.original_max_position_embeddings = 32;
  return rope;
}

// Bug 8: in bf16 neighbouring positions beyond 256 fall together.
TEST(RotaryTest, LatePositionsStayApart) {
  const ops::RotaryTable table = RotaryEmbedding(Rope(RopeConfig::Type::kDefault), at::kCPU)(
      at::tensor({100'000, 100'001}, at::kLong), at::tensor({200'000, 200'000}, at::kLong));
  EXPECT_EQ(table.cos_TP.scalar_type(), at::kFloat);
  EXPECT_NEAR(table.sin_TP[0][0].item<double>(), std::sin(100'000.0), 1e-3);
  EXPECT_NEAR(table.sin_TP[1][0].item<double>(), std::sin(100'001.0), 1e-3);
}

// A document's frequencies do not depend on its neighbours in the batch.
TEST(RotaryTest, DocumentsOfOneBatchChooseForThemselves) {
  RopeConfig longrope = Rope(RopeConfig::Type::kLongrope);
  longrope.short_factors.assign(8, 1.0);
  longrope.long_factors.assign(8, 3.0);
  for (const RopeConfig& rope : {longrope, Rope(RopeConfig::Type::kDynamic)}) {
    const RotaryEmbedding rotary(rope, at::kCPU);
    const Tensor positions = at::tensor({7, 7}, at::kLong);
    const ops::RotaryTable both = rotary(positions, at::tensor({10, 50}, at::kLong));
    const ops::RotaryTable alone = rotary(positions.slice(0, 0, 1), at::tensor({10}, at::kLong));
    EXPECT_TRUE(at::equal(both.cos_TP[0], alone.cos_TP[0]));
    EXPECT_GT((both.cos_TP[1] - both.cos_TP[0]).abs().max().item<double>(), 1e-3);
    EXPECT_EQ(rotary.switch_length(), 32);
  }
}

// Up to the context that the model knows, dynamic scaling changes nothing.
TEST(RotaryTest, DynamicIsPlainWithinTheContext) {
  const Tensor positions = at::arange(32, at::kLong), lengths = at::full({32}, 32, at::kLong);
  const ops::RotaryTable dynamic = RotaryEmbedding(Rope(RopeConfig::Type::kDynamic), at::kCPU)(positions, lengths);
  const ops::RotaryTable plain = RotaryEmbedding(Rope(RopeConfig::Type::kDefault), at::kCPU)(positions, lengths);
  EXPECT_LT((dynamic.cos_TP - plain.cos_TP).abs().max().item<double>(), 1e-6);
}

}  // namespace
}  // namespace luthier
