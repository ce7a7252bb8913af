#include "lib/plan/resolve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "lib/checkpoint/model_tensors.h"
#include "lib/plan/adapter_plan.h"
#include "lib/plan/flops.h"

namespace luthier {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

ModelFacts Model(int64_t hidden, int64_t layers, int64_t heads, int64_t kv_heads, int64_t mlp, int64_t vocab) {
  ModelFacts facts;
  facts.config.model_type = "llama";
  facts.config.vocab_size = vocab;
  facts.config.hidden_size = hidden;
  facts.config.num_layers = layers;
  facts.config.num_heads = heads;
  facts.config.num_kv_heads = kv_heads;
  facts.config.head_dim = hidden / heads;
  facts.config.intermediate_size = mlp;
  facts.config.max_position_embeddings = 1024;
  facts.config.tie_word_embeddings = true;
  for (const auto& [name, shape] : CheckpointTensors(facts.config)) facts.parameters += NumElements(shape);
  return facts;
}

ModelFacts Tiny() { return Model(256, 4, 4, 2, 704, 4096); }
ModelFacts Llama1B() { return Model(2048, 16, 32, 8, 8192, 128256); }
ModelFacts Llama8B() { return Model(4096, 32, 32, 8, 14336, 128256); }

// Of 8 experts, each token goes through 2.
ModelFacts Mixture() {
  ModelFacts facts = Tiny();
  facts.config.model_type = "qwen3_moe";
  facts.config.experts = ExpertsConfig{8, 2, 64, true};
  facts.config.layers.resize(4);
  for (LayerConfig& layer : facts.config.layers) layer.experts = true;
  facts.parameters = 0;
  for (const auto& [name, shape] : CheckpointTensors(facts.config)) facts.parameters += NumElements(shape);
  return facts;
}

DatasetFacts Rows(int64_t rows) { return {rows, rows * 50, rows * 10, 90, "messages"}; }
DeviceFacts Cpu() { return {DeviceFacts::Kind::kCpu, int64_t{8} << 30, 2, false}; }
DeviceFacts H200() { return {DeviceFacts::Kind::kCuda, int64_t{139} << 30, 16, true}; }

ResolvedSpec MustResolve(const Recipe& recipe, const ModelFacts& model, const DatasetFacts& dataset,
                         const DeviceFacts& device) {
  auto resolved = Resolve(recipe, model, dataset, device);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return resolved.ok() ? *std::move(resolved) : ResolvedSpec{};
}

std::string ReasonOf(const ResolvedSpec& resolved, const std::string& field) {
  for (const ResolvedValue& value : resolved.values) {
    if (value.field == field) return value.reason;
  }
  return "no such field";
}

// Of an adapter on every linear layer but the head.
int64_t AdapterParameters(const ModelConfig& model, int64_t rank) {
  const LoraSpec lora = {.rank = rank, .alpha = 32, .dropout = 0, .rslora = false, .dora = false};
  return TrainedParameters(AdapterConfigOf(lora, model), model);
}

// Sums of (in + out) over the linear layers as Llama 3.2 1B and 3.1 8B publish them.
TEST(MemoryTest, CountsAdapterParameters) {
  EXPECT_EQ(AdapterParameters(Llama1B().config, 1), 704'512);
  EXPECT_EQ(AdapterParameters(Llama8B().config, 1), 2'621'440);
  EXPECT_EQ(AdapterParameters(Llama8B().config, 32), 32 * 2'621'440);
}

// SmolLM2-135M has 134.5 M weights, each of which is in one matrix product.
TEST(FlopsTest, FollowTheRuleForEveryTokenAndForAttention) {
  const ModelConfig config = Model(576, 30, 9, 3, 1536, 49152).config;
  EXPECT_NEAR(TrainingFlops(config, /*full=*/true, 0, 1, 0), 6 * 134.5e6, 0.1e6 * 6);
  EXPECT_NEAR(TrainingFlops(config, /*full=*/false, 1000, 1, 0), 4 * 134.5e6 + 6000, 0.1e6 * 4);
  EXPECT_EQ(TrainingFlops(config, true, 0, 0, 100), 6 * 576 * 30 * 100);
}

// Every expert's weights are loaded; a token is multiplied by those of two.
TEST(FlopsTest, CountsTheExpertsThatATokenGoesThrough) {
  const ModelFacts facts = Mixture();
  const int64_t norms = 4 * (2 * 256 + 2 * 64) + 256, unused = 4 * 6 * 3 * 64 * 256;
  EXPECT_EQ(TrainingFlops(facts.config, /*full=*/true, 0, 1, 0),
            static_cast<double>(6 * (facts.parameters - norms - unused)));
}

TEST(MemoryTest, FollowsTheRuleForWeightsAndTrainingState) {
  const ModelFacts model = Llama1B();
  const MemoryEstimate lora = EstimateMemory(model, {false, 1000, true, true, 0});
  EXPECT_EQ(lora.weights, 2 * model.parameters);
  EXPECT_EQ(lora.training_state, 16 * 1000);
  EXPECT_EQ(lora.activations, 0);
  const MemoryEstimate full = EstimateMemory(model, {true, 0, true, true, 0});
  EXPECT_EQ(full.weights + full.training_state, 14 * model.parameters);  // half of the gradients beside the activations
  MemoryInputs several = {true, 0, false, false, 0};
  several.accumulates = true;
  const MemoryEstimate full_fp32 = EstimateMemory(model, several);
  EXPECT_EQ(full_fp32.weights + full_fp32.training_state, 16 * model.parameters);
}

TEST(MemoryTest, TheLargestMicroBatchFitsAndOneMoreStepDoesNot) {
  const ModelFacts model = Llama1B();
  MemoryInputs inputs = {false, 1000, true, true, 0};
  constexpr int64_t kMemory = int64_t{16} << 30;
  inputs.micro_batch_tokens = LargestMicroBatch(model, inputs, kMemory);
  ASSERT_GT(inputs.micro_batch_tokens, 0);
  EXPECT_LE(EstimateMemory(model, inputs).total, kMemory);
  inputs.micro_batch_tokens += 1;
  EXPECT_GT(EstimateMemory(model, inputs).total, kMemory);
  EXPECT_EQ(LargestMicroBatch(model, inputs, 1 << 20), 0);
}

struct ResolveRow {
  const char* name;
  ModelFacts model;
  int64_t rows;
  const char* tuning;
  double epochs;
  int64_t batch_tokens;
  int64_t steps;
  double learning_rate;
};

class ResolveTableTest : public ::testing::TestWithParam<ResolveRow> {};

// Rows have 50 tokens on average and 90 at most.
TEST_P(ResolveTableTest, ChoosesTheseValues) {
  const ResolveRow& row = GetParam();
  Recipe recipe;
  recipe.tuning = row.tuning;
  const ResolvedSpec resolved = MustResolve(recipe, row.model, Rows(row.rows), H200());
  EXPECT_EQ(*resolved.recipe.training.epochs, row.epochs);
  EXPECT_EQ(*resolved.recipe.training.batch_tokens, row.batch_tokens);
  EXPECT_EQ(resolved.total_steps, row.steps);
  EXPECT_NEAR(*resolved.recipe.training.learning_rate, row.learning_rate, row.learning_rate * 0.02);
  EXPECT_EQ(*resolved.recipe.training.max_length, 96);
}

INSTANTIATE_TEST_SUITE_P(
    Table, ResolveTableTest,
    ::testing::Values(ResolveRow{"TinyOn600Rows", Tiny(), 600, "lora", 3, 450, 200, 2.5e-3},
                      ResolveRow{"TinyFullOn600Rows", Tiny(), 600, "full", 3, 450, 200, 2.5e-4},
                      ResolveRow{"TinyOn100Rows", Tiny(), 100, "lora", 8, 400, 100, 2.5e-3},
                      ResolveRow{"TinyOn10Rows", Tiny(), 10, "lora", 20, 400, 25, 3.7e-3},
                      ResolveRow{"Llama1BOn4000Rows", Llama1B(), 4000, "lora", 3, 3000, 200, 4.9e-4},
                      ResolveRow{"Llama8BOn100000Rows", Llama8B(), 100'000, "lora", 1, 6400, 782, 2.9e-4},
                      ResolveRow{"Llama1BFullOn4000Rows", Llama1B(), 4000, "full", 3, 3000, 200, 4.9e-5}),
    [](const auto& info) { return info.param.name; });

TEST(ResolveTest, EveryValueIsSettledWithAReason) {
  const ResolvedSpec resolved = MustResolve({}, Tiny(), Rows(600), Cpu());
  const nlohmann::json recipe = ToJson(resolved.recipe);
  for (const char* block : {"lora", "training", "evaluation", "checkpoint", "resources"}) {
    for (const auto& [field, value] : recipe[block].items()) {
      EXPECT_NE(ReasonOf(resolved, std::string(block) + "." + field), "no such field") << block << "." << field;
    }
  }
  EXPECT_EQ(recipe["training"].size(), 18u);  // all but max_steps
  EXPECT_EQ(recipe["evaluation"].size(), 4u);
  EXPECT_EQ(recipe["resources"]["nodes"], 1);
  for (const ResolvedValue& value : resolved.values) EXPECT_FALSE(value.reason.empty()) << value.field;
}

TEST(ResolveTest, SaysThatTheEpochsEndBeforeTheStepsThatWereAskedFor) {
  Recipe recipe;
  recipe.training.max_steps = 1'000'000;
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(600), Cpu()).warnings,
              Contains(HasSubstr("training.max_steps: 1000000 are not reached")));
  recipe.training.max_steps = 5;
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(600), Cpu()).warnings, Not(Contains(HasSubstr("max_steps"))));
}

TEST(ResolveTest, GivenValuesAreNeverChanged) {
  Recipe recipe;
  recipe.lora.rank = 3;
  recipe.training.learning_rate = 0.5;
  recipe.training.epochs = 0.1;
  recipe.training.batch_tokens = 17;
  recipe.checkpoint.every = 999;
  recipe.training.max_steps = 5;
  const ResolvedSpec resolved = MustResolve(recipe, Tiny(), Rows(600), Cpu());
  EXPECT_EQ(resolved.recipe.lora.rank, 3);
  EXPECT_EQ(resolved.recipe.training.learning_rate, 0.5);
  EXPECT_EQ(resolved.recipe.training.epochs, 0.1);
  EXPECT_EQ(resolved.recipe.training.batch_tokens, 17);
  EXPECT_EQ(resolved.recipe.checkpoint.every, 999);
  EXPECT_EQ(resolved.total_steps, 5);
  for (const char* field : {"lora.rank", "training.learning_rate", "training.epochs", "training.max_steps"}) {
    EXPECT_EQ(ReasonOf(resolved, field), "given") << field;
  }
}

TEST(ResolveTest, AGivenAlphaMovesTheLearningRateTheOtherWay) {
  Recipe recipe;
  const double usual = *MustResolve(recipe, Tiny(), Rows(600), Cpu()).recipe.training.learning_rate;
  recipe.lora.alpha = 64;
  const ResolvedSpec resolved = MustResolve(recipe, Tiny(), Rows(600), Cpu());
  EXPECT_NEAR(*resolved.recipe.training.learning_rate, usual / 2, usual * 0.03);
  EXPECT_THAT(ReasonOf(resolved, "training.learning_rate"), HasSubstr("for the scale"));
}

TEST(ResolveTest, MaxLengthStaysWithinTheModelsContext) {
  DatasetFacts dataset = Rows(600);
  dataset.longest_row = 5000;
  const ResolvedSpec resolved = MustResolve({}, Tiny(), dataset, Cpu());
  EXPECT_EQ(resolved.recipe.training.max_length, 1024);
  EXPECT_THAT(resolved.warnings, Contains(HasSubstr("5000 tokens")));
}

TEST(ResolveTest, SaysHowManyRowsAreCutWhereTheyWereCounted) {
  DatasetFacts dataset = Rows(600);
  dataset.truncated = 7;
  dataset.dropped = 2;
  Recipe recipe;
  recipe.training.max_length = 64;
  EXPECT_THAT(MustResolve(recipe, Tiny(), dataset, Cpu()).warnings,
              ElementsAre(HasSubstr("max_length, 64 tokens: 7 are cut and 2 left out")));
}

// A row is never divided, so the bound does not hold for it: that is said, and memory is planned for the row.
TEST(ResolveTest, ARowLongerThanAMicroBatchIsSaidAndPlannedFor) {
  DatasetFacts dataset = Rows(600);
  dataset.longest_row = 900;
  Recipe recipe;
  recipe.training.micro_batch_tokens = 64;
  const ResolvedSpec small = MustResolve(recipe, Tiny(), dataset, Cpu());
  EXPECT_THAT(small.warnings, ElementsAre(HasSubstr("900 tokens, training.micro_batch_tokens is 64")));
  recipe.training.micro_batch_tokens = 900;
  const ResolvedSpec enough = MustResolve(recipe, Tiny(), dataset, Cpu());
  EXPECT_THAT(enough.warnings, IsEmpty());
  EXPECT_EQ(small.memory.activations, enough.memory.activations);
}

TEST(ResolveTest, RowsAreEncodedFirstAsTheTaskWillTrainThem) {
  Recipe recipe;
  EXPECT_EQ(LossOnBeforeRowsAreKnown(recipe), "assistant");
  recipe.task = "text";
  EXPECT_EQ(LossOnBeforeRowsAreKnown(recipe), "all");
  recipe.training.loss_on = "completion";
  EXPECT_EQ(LossOnBeforeRowsAreKnown(recipe), "completion");
}

TEST(ResolveTest, PrecisionFollowsTheDevice) {
  EXPECT_EQ(MustResolve({}, Tiny(), Rows(600), Cpu()).recipe.training.precision, "fp32");
  EXPECT_EQ(MustResolve({}, Tiny(), Rows(600), H200()).recipe.training.precision, "bf16");
}

TEST(ResolveTest, ASmallDeviceGetsASmallMicroBatch) {
  DeviceFacts device = H200();
  device.memory_bytes = int64_t{8} << 30;
  DatasetFacts dataset = Rows(100'000);
  dataset.longest_row = 512;
  dataset.tokens = dataset.rows * 500;
  const ResolvedSpec small = MustResolve({}, Llama1B(), dataset, device);
  const ResolvedSpec large = MustResolve({}, Llama1B(), dataset, H200());
  EXPECT_LT(*small.recipe.training.micro_batch_tokens, *large.recipe.training.micro_batch_tokens);
  EXPECT_EQ(small.recipe.training.batch_tokens, large.recipe.training.batch_tokens);
}

TEST(ResolveTest, AJobThatCannotFitIsRefusedWithBothFigures) {
  Recipe recipe;
  recipe.tuning = "full";
  const auto resolved = Resolve(recipe, Llama1B(), Rows(5000), Cpu());
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(resolved.status().message()),
              testing::MatchesRegex("the job needs about [0-9.]+ GB and the device has 8.59 GB; give tuning: lora, or "
                                    "a device with [0-9.]+ GB"));
  EXPECT_THAT(std::string(Resolve(recipe, Llama8B(), Rows(5000), Cpu()).status().message()),
              testing::MatchesRegex(".* 8.59 GB; give a device with [0-9.]+ GB"))
      << "nothing else would do";
}

// Does what a refusal says; what it says of a device, to the device.
void Heed(const std::string& remedy, Recipe& recipe, DeviceFacts& device) {
  const auto says = [&](const char* words) { return remedy.find(words) != std::string::npos; };
  const auto number_after = [&](const std::string& words) {
    return std::stod(remedy.substr(remedy.find(words) + words.size()));
  };
  if (says("tuning: lora")) recipe.tuning = "lora";
  if (says("training.precision: bf16")) recipe.training.precision = "bf16";
  if (says("training.activation_checkpointing: true")) recipe.training.activation_checkpointing = true;
  if (says("of at most ")) {
    const auto most = static_cast<int64_t>(number_after("of at most "));
    if (says("training.max_length (")) recipe.training.max_length = most;
    if (recipe.training.micro_batch_tokens || !recipe.training.max_length) recipe.training.micro_batch_tokens = most;
  }
  if (says("a device with ")) device.memory_bytes = static_cast<int64_t>(1e9 * number_after("a device with "));
}

TEST(ResolveTest, WhatARefusalSaysWouldFitDoes) {
  DatasetFacts dataset = Rows(600);
  dataset.longest_row = 900;
  dataset.tokens = dataset.rows * 800;
  std::set<std::string> said;  // without numbers
  for (const char* tuning : {"lora", "full"}) {
    for (const std::optional<int64_t> micro_batch : {std::optional<int64_t>(), std::optional<int64_t>(20'000)}) {
      for (const std::optional<bool> again : {std::optional<bool>(), std::optional<bool>(false)}) {
        Recipe recipe;
        recipe.tuning = tuning;
        recipe.training.micro_batch_tokens = micro_batch;
        recipe.training.activation_checkpointing = again;
        for (int64_t memory = int64_t{1} << 30; memory < int64_t{64} << 30; memory += memory / 16) {
          DeviceFacts device = Cpu();
          device.memory_bytes = memory;
          const absl::Status refused = Resolve(recipe, Llama1B(), dataset, device).status();
          if (refused.ok()) break;
          const std::string message(refused.message());
          const std::vector<std::string> remedies =
              absl::StrSplit(message.substr(message.find("; give ") + 7), ", or ");
          for (const std::string& remedy : remedies) {
            Recipe heeded = recipe;
            DeviceFacts heeded_device = device;
            Heed(remedy, heeded, heeded_device);
            const absl::Status fits = Resolve(heeded, Llama1B(), dataset, heeded_device).status();
            EXPECT_TRUE(fits.ok()) << message << "\n" << remedy << "\n" << fits;
            said.insert(remedy.substr(0, remedy.find(" of at most ")));
          }
        }
      }
    }
  }
  EXPECT_THAT(said, testing::IsSupersetOf({"training.precision: bf16", "tuning: lora",
                                           "training.activation_checkpointing: true", "training.micro_batch_tokens"}));
  EXPECT_THAT(said,
              Contains(testing::EndsWith(" and training.max_length (and training.micro_batch_tokens, if given)")));
}

TEST(ResolveTest, WarnsWhenTheAdapterCannotHoldTheData) {
  Recipe recipe;
  recipe.lora.rank = 1;
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(100'000), Cpu()).warnings,
              Contains(HasSubstr("give lora.rank: 39 or higher, or tuning: full")));
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(5'000'000), Cpu()).warnings,
              Contains(HasSubstr("no lora.rank holds so much; give tuning: full")));
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(600), Cpu()).warnings, IsEmpty());
}

TEST(ResolveTest, RefusesWhatTheModelCannotDo) {
  EXPECT_THAT(std::string(Resolve({}, Tiny(), Rows(0), Cpu()).status().message()), HasSubstr("dataset: has no rows"));
  EXPECT_THAT(std::string(Resolve({}, Tiny(), Rows(int64_t{1} << 31), Cpu()).status().message()),
              HasSubstr("an epoch has 2147483648 rows; give at most 2147483647"));
  Recipe recipe;
  recipe.training.max_length = 2000;
  EXPECT_THAT(std::string(Resolve(recipe, Tiny(), Rows(10), Cpu()).status().message()), HasSubstr("give at most 1024"));
  recipe = {};
  recipe.lora.target_modules = {"c_attn"};
  EXPECT_THAT(std::string(Resolve(recipe, Tiny(), Rows(10), Cpu()).status().message()), HasSubstr("'c_attn'"));
}

TEST(ResolveTest, LayersAreComputedAgainOnlyWhereALongestRowWouldNotFit) {
  DatasetFacts dataset = Rows(600);
  dataset.longest_row = 1024;
  DeviceFacts device = H200();
  EXPECT_EQ(MustResolve({}, Llama1B(), dataset, device).recipe.training.activation_checkpointing, false);
  MemoryInputs inputs = {false, AdapterParameters(Llama1B().config, 16), true, true, 1024};
  const int64_t kept = EstimateMemory(Llama1B(), inputs).total;
  inputs.activation_checkpointing = true;
  const int64_t again = EstimateMemory(Llama1B(), inputs).total;
  ASSERT_LT(again, kept);
  device.memory_bytes = static_cast<int64_t>(static_cast<double>((again + kept) / 2) / 0.92);
  const ResolvedSpec resolved = MustResolve({}, Llama1B(), dataset, device);
  EXPECT_EQ(resolved.recipe.training.activation_checkpointing, true);
  EXPECT_THAT(ReasonOf(resolved, "training.activation_checkpointing"), HasSubstr("fits into memory only so"));
}

TEST(ResolveTest, WhatIsChosenByValidationNeedsAValidationPart) {
  Recipe patient, best;
  patient.evaluation.patience = 3;
  best.checkpoint.publish = "best";
  EXPECT_THAT(std::string(Resolve(patient, Tiny(), Rows(600), Cpu()).status().message()),
              HasSubstr("evaluation.patience: needs a validation part"));
  EXPECT_THAT(std::string(Resolve(best, Tiny(), Rows(600), Cpu()).status().message()),
              HasSubstr("checkpoint.publish: best needs a validation part"));
  DatasetFacts dataset = Rows(600);
  EXPECT_EQ(MustResolve({}, Tiny(), dataset, Cpu()).recipe.checkpoint.publish, "last");
  dataset.has_validation = true;
  EXPECT_EQ(MustResolve({}, Tiny(), dataset, Cpu()).recipe.checkpoint.publish, "best");
  EXPECT_EQ(ReasonOf(MustResolve(patient, Tiny(), dataset, Cpu()), "evaluation.patience"), "given");
}

TEST(ResolveTest, WithTheOptimizerInTheBackwardPassNothingIsClipped) {
  Recipe recipe;
  recipe.tuning = "full";
  recipe.training.optimizer_in_backward = true;
  const ResolvedSpec resolved = MustResolve(recipe, Tiny(), Rows(5000), Cpu());
  EXPECT_FALSE(resolved.recipe.training.clip_norm.has_value());
  const int64_t moved_at_once = resolved.memory.total;
  recipe.training.optimizer_in_backward = false;
  EXPECT_GT(MustResolve(recipe, Tiny(), Rows(5000), Cpu()).memory.total, moved_at_once);
}

TEST(ResolveTest, MetricAndLossFollowTheTask) {
  Recipe recipe;
  recipe.task = "ner";
  EXPECT_EQ(MustResolve(recipe, Tiny(), Rows(600), Cpu()).recipe.evaluation.metric, "field_f1");
  recipe.task = "text";
  DatasetFacts dataset = Rows(600);
  dataset.format = "text";
  EXPECT_EQ(MustResolve(recipe, Tiny(), dataset, Cpu()).recipe.training.loss_on, "all");
  recipe.task = "classification";
  EXPECT_EQ(MustResolve(recipe, Tiny(), Rows(600), Cpu()).recipe.evaluation.metric, "exact_match");
}

// Found before any weights are loaded, so that a server refuses at submit.
TEST(ResolveTest, NamesThatMatchNothingAreRefusedByFieldAndValue) {
  struct BadName {
    const char* message;  // beginning
    void (*give)(Recipe& recipe);
  };
  const BadName names[] = {
      {"lora.target_modules: 'q_prj' is no linear layer", [](Recipe& r) { r.lora.target_modules = {"q_prj"}; }},
      {"lora.exclude_modules: 'q_prj' is no linear layer", [](Recipe& r) { r.lora.exclude_modules = {"q_prj"}; }},
      {"lora.rank_pattern: 'q_prj' matches none of the layers",
       [](Recipe& r) { r.lora.rank_pattern = {{"q_prj", 8}}; }},
      {"lora.rank_pattern: 'v_proj' matches none of the layers",
       [](Recipe& r) {
         r.lora.target_modules = {"q_proj"};
         r.lora.rank_pattern = {{"v_proj", 8}};
       }},
      {"lora.alpha_pattern: 'q_prj' matches none of the layers",
       [](Recipe& r) { r.lora.alpha_pattern = {{"q_prj", 8}}; }},
      {"lora.layers: 99 is no layer of the model; give numbers from 0 to 3",
       [](Recipe& r) { r.lora.layers = {0, 99}; }},
      {"lora.layers: 4 is no layer", [](Recipe& r) { r.lora.layers = {4}; }},
      {"lora.layers: [0] leaves none",
       [](Recipe& r) {
         r.lora.target_modules = {"layers.1.self_attn.q_proj"};
         r.lora.layers = {0};
       }},
      {"lora.modules_to_save: 'proj' is also the end of", [](Recipe& r) { r.lora.modules_to_save = {"proj"}; }},
      {"lora.modules_to_save: 'norm' is also the end of", [](Recipe& r) { r.lora.modules_to_save = {"norm"}; }},
      {"lora.modules_to_save: 'embed_token' is no module", [](Recipe& r) { r.lora.modules_to_save = {"embed_token"}; }},
      {"lora.modules_to_save: [q_proj] trains whole",
       [](Recipe& r) {
         r.lora.target_modules = {"q_proj"};
         r.lora.modules_to_save = {"q_proj"};
       }},
      {"lora.target_pattern: 'q_proj' matches no linear layer; a pattern must match whole names, which are like "
       "model.layers.0",
       [](Recipe& r) { r.lora.target_pattern = "q_proj"; }},
      {"lora.exclude_modules: [q_proj, v_proj] leaves no linear layer",
       [](Recipe& r) {
         r.lora.target_modules = {"q_proj", "v_proj"};
         r.lora.exclude_modules = {"q_proj", "v_proj"};
       }},
      {"lora.exclude_pattern: '.*' leaves no linear layer", [](Recipe& r) { r.lora.exclude_pattern = ".*"; }},
      {"lora.target_modules: 'embed_token' is no linear layer",
       [](Recipe& r) { r.lora.target_modules = {"embed_token"}; }},
      {"training.freeze: 'model.embed_token' matches no weight",
       [](Recipe& r) {
         r.tuning = "full";
         r.training.freeze = {"model.embed_token"};
       }},
  };
  for (const BadName& name : names) {
    Recipe recipe;
    name.give(recipe);
    const absl::Status status = Resolve(recipe, Tiny(), Rows(600), Cpu()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name.message;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(name.message));
  }
  Recipe recipe;
  recipe.lora.layers = {0, 3};
  recipe.lora.rank_pattern = {{"q_proj", 8}, {R"(layers\.3\..*)", 4}};
  recipe.lora.modules_to_save = {"model.norm", "embed_tokens", "lm_head"};
  recipe.lora.exclude_modules = {"down_proj"};
  MustResolve(recipe, Tiny(), Rows(600), Cpu());
}

TEST(ResolveTest, AnEmbeddingThatIsNamedGetsAnAdapter) {
  Recipe recipe;
  recipe.lora.rank = 4;
  recipe.lora.target_modules = {"q_proj"};
  const auto parameters = [&] {
    const ResolvedSpec resolved = MustResolve(recipe, Tiny(), Rows(600), Cpu());
    return TrainedParameters(AdapterConfigOf(resolved.recipe.lora, Tiny().config), Tiny().config);
  };
  const int64_t without = parameters();
  recipe.lora.target_modules = {"q_proj", "embed_tokens"};
  EXPECT_EQ(parameters() - without, 4 * (4096 + 256));  // [rank, vocabulary] and [hidden, rank]
  recipe.lora.target_modules.clear();
  const int64_t all_linear = parameters();
  recipe.lora.target_pattern = ".*_proj|.*embed_tokens";
  EXPECT_EQ(parameters() - all_linear, 4 * (4096 + 256));
}

TEST(ResolveTest, ExpertsThatAreNamedGetAdaptersOfTheirOwn) {
  const ModelConfig model = Mixture().config;
  Recipe recipe;
  recipe.lora.rank = 4;
  const auto parameters = [&] {
    const ResolvedSpec resolved = MustResolve(recipe, Mixture(), Rows(600), Cpu());
    return TrainedParameters(AdapterConfigOf(resolved.recipe.lora, model), model);
  };
  const int64_t attention = parameters();
  EXPECT_THAT(ReasonOf(MustResolve(recipe, Mixture(), Rows(600), Cpu()), "lora.target_modules"),
              HasSubstr("lora.target_parameters"));
  recipe.lora.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  const int64_t experts = parameters();
  EXPECT_EQ(experts, 4 * 4 * 8 * (256 + 2 * 64 + 64 + 256));  // layers, rank, experts
  const ResolvedSpec alone = MustResolve(recipe, Mixture(), Rows(600), Cpu());
  EXPECT_EQ(ParametersOfAToken(AdapterConfigOf(alone.recipe.lora, model), model), experts / 8 * 2);
  EXPECT_EQ(ReasonOf(MustResolve(recipe, Mixture(), Rows(600), Cpu()), "lora.target_parameters"), "given");
  recipe.lora.target_modules = {"q_proj", "k_proj", "v_proj", "o_proj"};
  EXPECT_EQ(parameters(), attention + experts);
  recipe.lora.rank_pattern = {{"gate_up_proj", 8}};
  EXPECT_EQ(parameters(), attention + experts + 4 * 4 * 8 * (256 + 2 * 64));
  recipe.lora.layers = {0};
  EXPECT_THAT(MustResolve(recipe, Mixture(), Rows(600), Cpu()).warnings,
              Contains(HasSubstr("lora.layers: does not act on lora.target_parameters")));
}

TEST(ResolveTest, WhatExpertsCannotHaveIsRefusedByFieldAndValue) {
  struct Bad {
    const char* message;  // beginning
    void (*give)(Recipe& recipe);
  };
  const Bad cases[] = {
      {"lora.target_modules: 'gate_proj' names experts, which are parameters; give lora.target_parameters",
       [](Recipe& r) { r.lora.target_modules = {"gate_proj"}; }},
      {"lora.target_parameters: 'experts.gate_proj' is no parameter that takes an adapter; give "
       "mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate.weight",
       [](Recipe& r) { r.lora.target_parameters = {"experts.gate_proj"}; }},
      {"lora.target_parameters: 'weight' is no parameter", [](Recipe& r) { r.lora.target_parameters = {"weight"}; }},
      {"lora.dora: true goes with no lora.target_parameters",
       [](Recipe& r) {
         r.lora.target_parameters = {"mlp.experts.down_proj"};
         r.lora.dora = true;
       }},
      {"lora.dropout: 0.1 goes with no lora.target_parameters",
       [](Recipe& r) {
         r.lora.target_parameters = {"mlp.experts.down_proj"};
         r.lora.dropout = 0.1;
       }},
      {"lora.modules_to_save: [gate] trains whole what lora.target_parameters adapts, model.layers.0.mlp.gate.weight",
       [](Recipe& r) {
         r.lora.target_parameters = {"mlp.gate.weight"};
         r.lora.modules_to_save = {"gate"};
       }},
      {"lora.modules_to_save: 'down_proj' names experts", [](Recipe& r) { r.lora.modules_to_save = {"down_proj"}; }},
      {"lora.rank_pattern: 'down_proj' matches none of the layers that get an adapter; they are like "
       "model.layers.0.mlp.experts.gate_up_proj",
       [](Recipe& r) {
         r.lora.target_parameters = {"mlp.experts.gate_up_proj"};
         r.lora.rank_pattern = {{"down_proj", 2}};
       }},
  };
  for (const Bad& bad : cases) {
    Recipe recipe;
    bad.give(recipe);
    const absl::Status status = Resolve(recipe, Mixture(), Rows(600), Cpu()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(bad.message));
  }
  Recipe recipe;
  recipe.lora.target_parameters = {"mlp.experts.down_proj"};
  EXPECT_THAT(std::string(Resolve(recipe, Tiny(), Rows(600), Cpu()).status().message()),
              HasSubstr("takes an adapter; the model has no experts"));
}

TEST(ResolveTest, LoraPlusBesideAnEmbeddingIsWarnedAbout) {
  Recipe recipe;
  recipe.lora.plus_ratio = 4;
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(600), Cpu()).warnings, Not(Contains(HasSubstr("lora.plus_ratio"))));
  recipe.lora.target_modules = {"q_proj", "embed_tokens"};
  EXPECT_THAT(MustResolve(recipe, Tiny(), Rows(600), Cpu()).warnings,
              Contains(HasSubstr("lora.plus_ratio: with it the adapter on the embedding learns at 1e-06")));
}

TEST(ResolveTest, AdaptersThatVllmRefusesAreWarnedAbout) {
  const auto warnings = [](const LoraSpec& lora, const ModelFacts& model) {
    Recipe recipe;
    recipe.lora = lora;
    return MustResolve(recipe, model, Rows(600), Cpu()).warnings;
  };
  const auto of_vllm = Contains(HasSubstr("vLLM"));
  EXPECT_THAT(warnings({}, Tiny()), Not(of_vllm));
  EXPECT_THAT(warnings({.rslora = true, .dora = true}, Tiny()), Contains(HasSubstr("lora.dora: vLLM loads no")));
  EXPECT_THAT(warnings({.modules_to_save = {"lm_head"}}, Tiny()), Contains(HasSubstr("lora.modules_to_save: vLLM")));
  ModelFacts mistral = Tiny();
  mistral.config.model_type = "mistral";
  for (const char* module : {"lm_head", "embed_tokens"}) {
    const LoraSpec outside{.target_modules = {"q_proj", module}};
    EXPECT_THAT(warnings(outside, Tiny()), Not(of_vllm));
    EXPECT_THAT(warnings(outside, mistral), Contains(HasSubstr("lora.target_modules: in this family vLLM refuses")));
  }
  EXPECT_THAT(warnings({.target_modules = {"q_proj"}}, mistral), Not(of_vllm));
  EXPECT_THAT(warnings({.target_parameters = {"mlp.gate.weight"}}, Mixture()), Not(of_vllm));
  EXPECT_THAT(warnings({.target_parameters = {"down_proj"}}, Mixture()),
              Contains(HasSubstr("lora.target_parameters: vLLM")));
}

// What a warm start forgot would be trained anew, or not at all.
TEST(AdapterPlanTest, AWarmStartAsksForEverythingThatShapesTheAdapter) {
  const ModelConfig model = Tiny().config;
  AdapterConfig lists;
  lists.rank = 4;
  lists.alpha = 6;
  lists.rslora = true;
  lists.dora = true;
  lists.target_modules = {"q_proj", "v_proj"};
  lists.exclude_modules = {"layers.1.self_attn.q_proj"};
  lists.layers_to_transform = {0, 1};
  lists.rank_pattern = {{"q_proj", 2}};
  lists.alpha_pattern = {{"v_proj", 3}};
  lists.modules_to_save = {"lm_head"};
  AdapterConfig patterns;
  patterns.target_regex = ".*_proj";
  patterns.exclude_regex = R"(.*\.[0-1]\..*)";
  for (const AdapterConfig& adapter : {lists, patterns}) {
    LoraSpec lora;
    lora.dropout = 0;
    TakeShapeOf(adapter, lora);
    EXPECT_EQ(ToJson(AdapterConfigOf(lora, model)), ToJson(adapter));
  }
  for (const std::vector<std::string>& modules : {std::vector<std::string>{"q_proj"}, std::vector<std::string>{}}) {
    AdapterConfig experts;
    experts.target_modules = modules;
    experts.target_parameters = {"mlp.experts.down_proj"};
    LoraSpec lora;
    lora.dropout = 0;
    TakeShapeOf(experts, lora);
    EXPECT_EQ(ToJson(AdapterConfigOf(lora, Mixture().config)), ToJson(experts));
  }
}

TEST(ResolveTest, AMetricThatTheTaskLacksIsRefused) {
  const auto resolve = [](const char* task, const char* metric) {
    Recipe recipe;
    recipe.task = task;
    recipe.evaluation.metric = metric;
    return std::string(Resolve(recipe, Tiny(), Rows(600), Cpu()).status().message());
  };
  EXPECT_EQ(resolve("classification", "field_f1"),
            "evaluation.metric: field_f1 does not fit task: classification; give exact_match, loss, or auto");
  EXPECT_THAT(resolve("chat", "json_equality"), HasSubstr("json_equality does not fit task: chat"));
  EXPECT_THAT(resolve("text", "exact_match"), HasSubstr("give loss, or auto"));
  EXPECT_EQ(resolve("tool_calling", "json_equality"), "");
  EXPECT_EQ(resolve("qa", "field_f1"), "");
}

TEST(ResolveTest, EvaluationSettingsWithoutAValidationPartAreWarnedAbout) {
  Recipe recipe;
  recipe.task = "extraction";
  recipe.evaluation.every = 7;
  recipe.evaluation.metric = "exact_match";
  DatasetFacts dataset = Rows(600);
  EXPECT_THAT(MustResolve(recipe, Tiny(), dataset, Cpu()).warnings,
              ::testing::IsSupersetOf({HasSubstr("evaluation.every: 7 has no effect without a validation part"),
                                       HasSubstr("evaluation.metric: exact_match has no effect")}));
  dataset.has_validation = true;
  EXPECT_THAT(MustResolve(recipe, Tiny(), dataset, Cpu()).warnings, Not(Contains(HasSubstr("no effect"))));
  // A trainer resolves what a server has settled: nobody wished for those values.
  dataset.has_validation = false;
  const Recipe settled = MustResolve({}, Tiny(), dataset, Cpu()).recipe;
  EXPECT_THAT(MustResolve(settled, Tiny(), dataset, Cpu()).warnings, Not(Contains(HasSubstr("no effect"))));
}

}  // namespace
}  // namespace luthier
