// The estimate of peak memory beside what bench-train, which takes the trainer's own steps, really used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "nlohmann/json.hpp"
#include "tests/support/captured_program.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;

struct Combination {
  const char* name;
  json shape;  // changes to the tiny Llama; none: the shipped base model
  const char* method;
  int length;  // tokens of a row
  int micro_batch_tokens;
  std::vector<std::string> more;
};

class MemoryEstimateTest : public ::testing::TestWithParam<Combination> {};

// Rows that are longer than any length here: all are cut.
std::string LongRows() {
  std::string rows;
  for (int i = 0; i < 40; ++i) rows += ChatLine(std::to_string(i), std::string(2000, static_cast<char>('a' + i % 26)));
  return rows;
}

TEST_P(MemoryEstimateTest, IsWithinTenPercentOfThePeak) {
  const Combination& of = GetParam();
  if (absl::c_linear_search(of.more, "bf16") && !__builtin_cpu_supports("avx512bf16"))
    GTEST_SKIP() << "what bf16 keeps was measured on processors that have units for it only";
  const TempFolder folder;
  WriteText(folder.path() + "/rows.jsonl", LongRows());
  std::string model = "examples/base/luthier-tiny";
  std::vector<std::string> command = {LUTHIER_BENCH_TRAIN_PROGRAM,
                                      "--data",
                                      folder.path() + "/rows.jsonl",
                                      "--method",
                                      of.method,
                                      "--max-length",
                                      std::to_string(of.length),
                                      "--micro-batch-tokens",
                                      std::to_string(of.micro_batch_tokens),
                                      "--steps",
                                      "3",
                                      "--threads",
                                      "2",
                                      "--json"};
  if (!of.shape.is_null()) {
    model = folder.path() + "/base";
    WriteTinyBase(model, of.shape);
    command.push_back("--random-init");
  }
  command.insert(command.end(), {"--model", model});
  command.insert(command.end(), of.more.begin(), of.more.end());
  const CapturedResult run = RunCaptured(command);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json figures = json::parse(run.out);
  const double ratio = figures["estimated_mib"].get<double>() / figures["peak_rss_mib"].get<double>();
  std::printf("%s: estimated %.0f, peak %.0f MiB: %.3f\n", of.name, figures["estimated_mib"].get<double>(),
              figures["peak_rss_mib"].get<double>(), ratio);
  EXPECT_NEAR(ratio, 1, 0.1) << "estimated " << figures["estimated_mib"] << " MiB, peak " << figures["peak_rss_mib"]
                             << " MiB";
}

// 31 M weights.
const json kLlama = {{"hidden_size", 512},
                     {"intermediate_size", 1408},
                     {"num_hidden_layers", 10},
                     {"num_attention_heads", 8},
                     {"num_key_value_heads", 4},
                     {"head_dim", 64},
                     {"max_position_embeddings", 1024}};

json With(json shape, const json& more) {
  shape.update(more);
  return shape;
}

const json kGemma2 = With(kLlama, {{"model_type", "gemma2"},
                                   {"architectures", {"Gemma2ForCausalLM"}},
                                   {"hidden_activation", "gelu_pytorch_tanh"},
                                   {"query_pre_attn_scalar", 64},
                                   {"sliding_window", 128},
                                   {"attn_logit_softcapping", 50.0},
                                   {"final_logit_softcapping", 30.0}});

INSTANTIATE_TEST_SUITE_P(
    Table, MemoryEstimateTest,
    ::testing::Values(Combination{"ShippedBaseLora", nullptr, "lora", 128, 2048, {}},
                      Combination{"ShippedBaseFull", nullptr, "full", 512, 2048, {}},
                      Combination{"LlamaLora", kLlama, "lora", 256, 1024, {}},
                      Combination{"LlamaFull", kLlama, "full", 512, 1024, {}},
                      Combination{"LlamaLoraRecomputed", kLlama, "lora", 512, 1024, {"--grad-checkpointing"}},
                      Combination{"LlamaLoraBf16", kLlama, "lora", 512, 1024, {"--dtype", "bf16"}},
                      Combination{"Gemma2Lora", kGemma2, "lora", 512, 1024, {}}),
    [](const auto& info) { return std::string(info.param.name); });

// The Python baseline calls both by these names, and computes something else under the other one.
TEST(BenchTrainTest, AFormatThatIsNotTheBaselinesIsRefusedWithTheOneThatIs) {
  const TempFolder folder;
  WriteText(folder.path() + "/rows.jsonl", LongRows());
  const auto bench = [&](const std::string& method, const std::string& dtype) {
    return RunCaptured({LUTHIER_BENCH_TRAIN_PROGRAM, "--model", "examples/base/luthier-tiny/", "--data",
                        folder.path() + "/rows.jsonl", "--method", method, "--dtype", dtype, "--max-length", "64",
                        "--micro-batch-tokens", "64", "--steps", "3", "--json"});
  };
  EXPECT_THAT(bench("lora", "amp").err, ::testing::HasSubstr("give bf16"));
  EXPECT_THAT(bench("full", "bf16").err, ::testing::HasSubstr("give amp"));
  const CapturedResult mixed = bench("full", "amp");
  ASSERT_EQ(mixed.exit_code, 0) << mixed.err;
  EXPECT_EQ(json::parse(mixed.out)["dtype"], "amp");
  EXPECT_EQ(json::parse(mixed.out)["model"], "luthier-tiny");
}

TEST(BenchTrainTest, AFlagThatIsOutOfRangeIsRefusedByName) {
  const TempFolder folder;
  const std::string rows = folder.path() + "/rows.jsonl";
  WriteText(rows, LongRows());
  for (const char* flag : {"--rank", "--threads", "--max-length", "--micro-batch-tokens", "--grad-accum", "--lr"}) {
    const CapturedResult run =
        RunCaptured({LUTHIER_BENCH_TRAIN_PROGRAM, "--model", "examples/base/luthier-tiny", "--data", rows, flag, "0"});
    EXPECT_NE(run.exit_code, 0) << flag;
    EXPECT_THAT(run.err, ::testing::HasSubstr(flag));
  }
}

}  // namespace
}  // namespace luthier
